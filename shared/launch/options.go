package launch

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/jobtemplate"
)

// Options are what a launch can be told by the work pool, the deployment or the flow run,
// with job variables named jobtemplate.OptionPrefix and the option's name. The
// installation's own are Config.Options.
type Options struct {
	// Mode is how the execution is started: pushpool_launch_mode.
	Mode Mode
	// FastStart starts the flow with Prefect's engine alone, seconds earlier than its default
	// command does: pushpool_fast_start. See cloudrun.StartFast.
	FastStart bool
	// Retries is how often the flow run is launched again for how its executions end:
	// pushpool_retries gives some or all budgets, pushpool_retry_started the rest.
	Retries flowrun.Retries
	// Overflow are further regions, in their order, for when the job's own has no room:
	// pushpool_overflow_regions.
	Overflow []string
}

// Mode is how an execution is started.
type Mode string

const (
	// ModeJob creates a job for each launch, which starts the execution.
	ModeJob Mode = "job"
	// ModeSlots updates one of a fixed set of jobs for each launch: one write instead of two,
	// as no job has to be deleted, and never near the quota of jobs.
	ModeSlots Mode = "slots"
)

// option is one option: how its value is taken over, which says whether it could be, and
// what to write.
type option struct {
	read   func(o *Options, value any) bool
	expect string
}

var options = map[string]option{
	jobtemplate.OptionPrefix + "launch_mode": {expect: `"job" or "slots"`, read: func(o *Options, value any) bool {
		mode, _ := value.(string)
		o.Mode = Mode(mode)
		return o.Mode == ModeJob || o.Mode == ModeSlots
	}},
	jobtemplate.OptionPrefix + "fast_start": {expect: "true or false", read: func(o *Options, value any) (ok bool) {
		o.FastStart, ok = value.(bool)
		return ok
	}},
	jobtemplate.OptionPrefix + "overflow_regions": {expect: `an array of regions, such as ["europe-west4"]`, read: func(o *Options, value any) bool {
		list, ok := value.([]any)
		o.Overflow = nil
		for _, v := range list {
			region, isText := v.(string)
			ok = ok && isText && region != ""
			o.Overflow = append(o.Overflow, region)
		}
		return ok
	}},
	jobtemplate.OptionPrefix + "retries": {
		expect: `an object such as {"platform": 3, "exit_code": 1}, with numbers of 0 to 10 for platform, start, out_of_memory, exit_code, signal and timed_out`,
		read: func(o *Options, value any) bool {
			budget, ok := o.Retries.With(value)
			o.Retries.Budget = budget
			return ok
		},
	},
	jobtemplate.OptionPrefix + "retry_started": {expect: "true or false", read: func(o *Options, value any) (ok bool) {
		o.Retries.Started, ok = value.(bool)
		return ok
	}},
}

// with returns the options with those that job variables give in place of o's. The error,
// which is Permanent, names each variable that is unknown or wrong and what to write.
func (o Options) with(given map[string]any) (Options, error) {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(given)) {
		known, ok := options[name]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("job variable `%s` is no option; there are %s", name, strings.Join(slices.Sorted(maps.Keys(options)), ", ")))
		case !known.read(&o, given[name]):
			errs = append(errs, fmt.Errorf("job variable `%s`: write %s", name, known.expect))
		}
	}
	if len(errs) > 0 {
		return Options{}, &flowrun.Error{
			Fault: flowrun.Permanent, Act: "read the options of the launch", Err: errors.Join(errs...),
			Hint: "the flow run's job variables go before the deployment's, and these before the defaults of the work pool's base job template",
		}
	}
	return o, nil
}
