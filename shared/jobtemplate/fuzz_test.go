package jobtemplate

import (
	"context"
	"encoding/json"
	"errors"
	"reflect"
	"testing"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// sameLookup has one document under every name.
type sameLookup struct{ data json.RawMessage }

func (l sameLookup) BlockDocument(context.Context, string, string) (any, error) { return l.data, nil }

func (l sameLookup) BlockDocumentByID(context.Context, string) (any, error) { return l.data, nil }

func (l sameLookup) Variable(context.Context, string) (any, bool, error) { return l.data, true, nil }

// FuzzResolve checks that whatever is in a template, in job variables and in Prefect's
// blocks and variables, the answer is a job or a Permanent error with a hint, and always the same.
//
// The seeds are long, and minimizing what is found from them takes all the time there is
// unless it is bounded: go test -fuzz FuzzResolve -fuzztime 60s -fuzzminimizetime 5x
func FuzzResolve(f *testing.F) {
	for _, file := range vectorFiles(f) {
		v := readVector(f, file)
		document := []byte(`{"value":"{{ prefect.variables.x }}"}`)
		if len(v.BlockDocuments) > 0 {
			document = v.BlockDocuments[0].Data
		}
		f.Add(v.WorkerType == "cloud-run", []byte(v.BaseJobTemplate), []byte(v.DeploymentJobVariables), []byte(v.FlowRunJobVariables), document)
	}
	base := defaultInput(f)
	f.Fuzz(func(t *testing.T, v1 bool, template, deployment, flowRun, document []byte) {
		in := base
		if v1 {
			in.PoolType = "cloud-run"
		}
		in.BaseJobTemplate = json.RawMessage(template)
		in.DeploymentJobVariables = json.RawMessage(deployment)
		in.FlowRunJobVariables = json.RawMessage(flowRun)
		r, err := Render(t.Context(), in, sameLookup{document})
		again, errAgain := Render(t.Context(), in, sameLookup{document})
		if !reflect.DeepEqual(r, again) || (err == nil) != (errAgain == nil) {
			t.Errorf("%v, then %v (%v, then %v)", r, again, err, errAgain)
		}
		if err == nil {
			err = (Secrets{}).Apply(&r)
		}
		if err == nil {
			_, err = r.Job()
		}
		var e *flowrun.Error
		if err != nil && (!errors.As(err, &e) || e.Fault != flowrun.Permanent || e.Hint == "" || e.Act == "") {
			t.Errorf("error is %v", err)
		}
	})
}
