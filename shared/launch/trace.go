package launch

import (
	"context"

	"github.com/pushpool/pushpool/shared/prefect"
	"github.com/pushpool/pushpool/shared/telemetry"
)

// traceparent is the trace that the flow run is part of: Prefect's own, or that of the message
// that launches it. The container gets it by the name that OpenTelemetry gives it
// (https://opentelemetry.io/docs/specs/otel/context/env-carriers/). Empty if there is none.
func traceparent(ctx context.Context, fr prefect.FlowRun) string {
	if parent, ok := fr.Labels[prefect.LabelTraceparent].(string); ok && parent != "" {
		return parent
	}
	return telemetry.Traceparent(ctx)
}
