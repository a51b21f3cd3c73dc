package doctor

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"google.golang.org/api/cloudscheduler/v1"
	"google.golang.org/api/googleapi"
	"google.golang.org/api/logging/v2"
	"google.golang.org/api/monitoring/v3"
	"google.golang.org/api/option"
	"google.golang.org/api/policytroubleshooter/v3"
	"google.golang.org/api/serviceusage/v1"
)

// Google is what examining asks of Google Cloud beside what an installation uses itself. All of
// it only reads.
type Google struct {
	services  *serviceusage.Service
	metrics   *monitoring.Service
	logs      *logging.Service
	scheduler *cloudscheduler.Service
	policies  *policytroubleshooter.Service
	now       func() time.Time
}

// NewGoogle makes the clients. They share one address where the options name one, as tests do.
func NewGoogle(ctx context.Context, opts ...option.ClientOption) (*Google, error) {
	g := Google{now: time.Now}
	var errs [5]error
	g.services, errs[0] = serviceusage.NewService(ctx, opts...)
	g.metrics, errs[1] = monitoring.NewService(ctx, opts...)
	g.logs, errs[2] = logging.NewService(ctx, opts...)
	g.scheduler, errs[3] = cloudscheduler.NewService(ctx, opts...)
	g.policies, errs[4] = policytroubleshooter.NewService(ctx, opts...)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, fmt.Errorf("make clients of Google Cloud: %w; run `gcloud auth application-default login`", err)
	}
	return &g, nil
}

// refused is the finding of a call to Google that failed; role is what it takes.
func refused(act string, err error, project, role string) Finding {
	var g *googleapi.Error
	if !errors.As(err, &g) {
		return unknown(fmt.Errorf("%s: %w", act, err), "")
	}
	mend := ""
	switch {
	case g.Code == http.StatusForbidden && strings.Contains(g.Body, "SERVICE_DISABLED"):
		mend = "gcloud services enable " + disabledService(g.Body) + " --project=" + project
	case g.Code == http.StatusForbidden:
		mend = fmt.Sprintf("gcloud projects add-iam-policy-binding %s --member=user:YOU --role=%s", project, role)
	}
	return Finding{Status: Unknown, What: fmt.Sprintf("%s: %d %s", act, g.Code, g.Message), Mend: mend}
}

func disabledService(body string) string {
	_, rest, _ := strings.Cut(body, `"service": "`)
	service, _, ok := strings.Cut(rest, `"`)
	if !ok {
		return "THE_API"
	}
	return service
}

// apis are what the module enables (terraform/apis.tf); a test compares.
var apis = []string{
	"artifactregistry.googleapis.com", "cloudbuild.googleapis.com", "cloudfunctions.googleapis.com", "cloudscheduler.googleapis.com",
	"cloudtasks.googleapis.com", "firestore.googleapis.com", "iam.googleapis.com", "logging.googleapis.com", "monitoring.googleapis.com",
	"policytroubleshooter.googleapis.com", "pubsub.googleapis.com", "run.googleapis.com", "secretmanager.googleapis.com", "storage.googleapis.com",
}

// enabled asks which APIs are switched on.
func (g *Google) enabled(project string) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		var names []string
		for _, api := range apis { // 30 at most in one call
			names = append(names, "projects/"+project+"/services/"+api)
		}
		answer, err := g.services.Services.BatchGet("projects/" + project).Names(names...).Context(ctx).Do()
		if err != nil {
			return []Finding{refused("read which APIs are enabled", err, project, "roles/serviceusage.serviceUsageViewer")}
		}
		on := map[string]bool{}
		for _, s := range answer.Services {
			on[s.Name[strings.LastIndex(s.Name, "/")+1:]] = s.State == "ENABLED"
		}
		var off []string
		for _, api := range apis {
			if !on[api] {
				off = append(off, api)
			}
		}
		if len(off) > 0 {
			return []Finding{{
				Status: Problem, What: "APIs that are not enabled: " + strings.Join(off, ", "), Why: "every call to them fails",
				Mend: "gcloud services enable " + strings.Join(off, " ") + " --project=" + project,
			}}
		}
		return []Finding{ok("%d APIs are enabled", len(apis))}
	}
}
