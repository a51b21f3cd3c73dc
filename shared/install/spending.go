package install

import (
	"context"
	"log/slog"

	"github.com/pushpool/pushpool/shared/cloudrun"
	"github.com/pushpool/pushpool/shared/quota"
)

// Spending is a client that tells the budget of the writes that stop something. They cannot
// wait for a grant: launches leave room for a few, and later ones are granted after them.
type Spending struct {
	*cloudrun.Client
	Budget *quota.Budget
	Log    *slog.Logger
}

// CancelExecution is cloudrun.Client's.
func (s Spending) CancelExecution(ctx context.Context, n cloudrun.ExecutionName) error {
	defer s.spent(ctx, n.JobName())
	return s.Client.CancelExecution(ctx, n)
}

// DeleteJob is cloudrun.Client's.
func (s Spending) DeleteJob(ctx context.Context, n cloudrun.JobName) error {
	defer s.spent(ctx, n)
	return s.Client.DeleteJob(ctx, n)
}

func (s Spending) spent(ctx context.Context, n cloudrun.JobName) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), CallTimeout/4)
	defer cancel()
	if err := s.Budget.Spent(ctx, quota.Region(n.Project, n.Region), 1); err != nil {
		s.Log.WarnContext(ctx, "launches do not know of a write to Cloud Run; one of them may be refused, and is then tried again",
			"job", n.String(), "error", err)
	}
}
