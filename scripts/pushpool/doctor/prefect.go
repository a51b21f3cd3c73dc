package doctor

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	"github.com/pushpool/pushpool/scripts/pushpool/connect"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/prefect"
)

const lateWithoutEvents = "no event reaches the installation: flow runs that somebody asks for start, and cancellations take effect, up to a minute later"

// block is what Prefect's webhook block says.
type block struct {
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
}

// readBlock returns the webhook block that is named as the installation is.
func readBlock(ctx context.Context, in *operator.Installation) (block, error) {
	var b block
	doc, err := in.Prefect.BlockDocument(ctx, "webhook", in.Name)
	if err == nil {
		err = json.Unmarshal(doc.Data, &b)
	}
	return b, err
}

// reconnect is the command that mends Prefect's side. What Terraform prints of an installation holds no
// secrets, so the webhook's is taken from where the module puts it.
func reconnect(cfg operator.Config) string {
	return fmt.Sprintf("export WEBHOOK_SECRETS=$(gcloud secrets versions access latest --secret=%s-webhook-secrets --project=%s) && pushpool connect", cfg.Name, cfg.Project)
}

// connectAgain is that command, without the secret where it is there.
func connectAgain(cfg operator.Config) string {
	if cfg.WebhookSecrets != "" {
		return "pushpool connect"
	}
	return reconnect(cfg)
}

// Connection asks what `pushpool connect` would change.
func Connection(in *operator.Installation) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		if in.WebhookURL == "" {
			return notHere("the installation has no webhook (WEBHOOK_URL is not set); the sweep finds every flow run within a minute")
		}
		setup := prefect.WebhookSetup{BlockName: in.Name, AutomationName: in.Name, URL: in.WebhookURL, WorkPools: in.WorkPools}
		setup.Secret, _, _ = strings.Cut(string(in.WebhookSecrets), ",")
		if setup.Secret == "" {
			// Which secret is right the webhook itself is asked, below.
			if b, err := readBlock(ctx, in); err == nil {
				_, setup.Secret, _ = strings.Cut(b.Headers["Authorization"], " ")
			}
		}
		result, err := connect.Run(ctx, in.Prefect, connect.Plan{Webhook: setup, ServiceAccount: in.FlowServiceAccount, Dry: true})
		if err != nil {
			return []Finding{unknown(err, "pushpool connect --dry-run")}
		}
		var found []Finding
		var good []string
		for _, c := range result.Changes {
			f := Finding{Status: Problem, Why: lateWithoutEvents, Mend: connectAgain(in.Config)}
			switch {
			case c.Act == "create" && strings.HasPrefix(c.Object, "work pool "):
				f.What, f.Why = c.Object+" is not there", "no deployment can be made for it, so nothing is launched in it"
			case c.Act == "create":
				f.What = c.Object + " is not there"
			case c.Act == "update":
				f.What = fmt.Sprintf("%s differs from what it should be in %s", c.Object, strings.Join(c.Fields, ", "))
			case c.Note != "":
				f.What, f.Mend = c.Object+": "+c.Note, "switch it on in Prefect's UI (Automations), or `prefect automation resume "+in.Name+"`"
			default:
				good = append(good, c.Object)
				continue
			}
			found = append(found, f)
		}
		for _, w := range result.Warnings {
			found = append(found, Finding{Status: Warning, What: w})
		}
		if len(good) > 0 {
			found = append(found, ok("%s: as they should be", strings.Join(good, ", ")))
		}
		return found
	}
}

// hazards are what is known of Prefect's versions (docs/compatibility.md).
func hazards(version string, cloud bool) []Finding {
	if cloud {
		return []Finding{ok("Prefect Cloud")}
	}
	major, rest, _ := strings.Cut(version, ".")
	minor, patch, _ := strings.Cut(rest, ".")
	m, merr := strconv.Atoi(major)
	n, nerr := strconv.Atoi(minor)
	digits := strings.IndexFunc(patch+" ", func(r rune) bool { return r < '0' || r > '9' }) // 3.1.3rc1
	p, _ := strconv.Atoi(patch[:digits])
	older := func(a, b, c int) bool { return m < a || m == a && (n < b || n == b && p < c) }
	const upgrade = "upgrade the server; read docs/compatibility.md first"
	switch {
	case merr != nil || nerr != nil:
		return []Finding{{Status: Unknown, What: fmt.Sprintf("the server says version %q, which is none", version)}}
	case older(2, 20, 0):
		return []Finding{{
			Status: Problem, What: "Prefect " + version + " is older than 2.20",
			Why: "nobody has tried it; the calls that a launch is made of may be refused", Mend: upgrade,
		}}
	case m == 2:
		return []Finding{{
			Status: Warning, What: "Prefect " + version + ": events and automations are an experiment of 2.x, off by default, and there are no deployment limits",
			Why: lateWithoutEvents, Mend: "start the server with PREFECT_EXPERIMENTAL_EVENTS=true and PREFECT_API_SERVICES_TRIGGERS_ENABLED=true, then `pushpool connect`",
		}}
	case older(3, 1, 3):
		return []Finding{{
			Status: Problem, What: "Prefect " + version + " does not tell who retries a flow run",
			Why: "a flow that retries itself may be launched a second time", Mend: upgrade,
		}}
	}
	f := ok("Prefect %s", version)
	f.Why = "it holds an event whose predecessor it did not see back for 15 minutes (Late, of flow runs made less than 5 minutes before; several replicas without Redis); timers and the sweep do not wait for it"
	return []Finding{f}
}

func version(in *operator.Installation) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		v, cloud, err := in.Prefect.Version(ctx)
		if err != nil {
			return []Finding{{
				Status: Problem, What: err.Error(), Why: "the functions that call it the same way cannot launch or settle anything",
				Mend: "curl -i " + in.APIURL + "/health; check PREFECT_API_URL, and the key or auth string",
			}}
		}
		return hazards(v, cloud)
	}
}

// roundTrip calls the webhook as Prefect does, with a body that it takes for no event: it
// checks the secret first, and publishes nothing.
func roundTrip(in *operator.Installation) func(context.Context) []Finding {
	return func(ctx context.Context) []Finding {
		if in.WebhookURL == "" {
			return notHere("the installation has no webhook")
		}
		b, err := readBlock(ctx, in)
		switch {
		case err != nil && flowrun.FaultOf(err) == flowrun.NotFound:
			return []Finding{{Status: Problem, What: "Prefect has no webhook block " + in.Name, Why: lateWithoutEvents, Mend: connectAgain(in.Config)}}
		case err != nil:
			return []Finding{unknown(err, "")}
		}
		status, err := call(ctx, b)
		mend := fmt.Sprintf("curl -i -X POST %s", b.URL)
		switch {
		case err != nil:
			return []Finding{{Status: Unknown, What: fmt.Sprintf("call the webhook from here: %v", err), Why: "an internal webhook can be reached from its network only; else Prefect cannot reach it either: " + lateWithoutEvents, Mend: mend}}
		case status == http.StatusBadRequest:
			return []Finding{ok("the webhook takes the secret that Prefect's block sends")}
		case status == http.StatusUnauthorized:
			return []Finding{{
				Status: Problem, What: "the webhook refuses the secret that Prefect's block sends", Why: lateWithoutEvents,
				Mend: reconnect(in.Config) + ", or raise webhook_secret_version and terraform apply",
			}}
		case status == http.StatusNotFound || status == http.StatusForbidden:
			return []Finding{{Status: Unknown, What: fmt.Sprintf("%s answers %d here", b.URL, status), Why: "an internal webhook answers so to callers outside its network; a public one must not: " + lateWithoutEvents, Mend: mend}}
		}
		return []Finding{{Status: Problem, What: fmt.Sprintf("%s answers %d where 400 was due", b.URL, status), Why: lateWithoutEvents, Mend: mend}}
	}
}

func call(ctx context.Context, b block) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, b.URL, strings.NewReader(`{"asked_by": "pushpool doctor"}`))
	if err != nil {
		return 0, err
	}
	for name, value := range b.Headers {
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16))
	return resp.StatusCode, nil
}
