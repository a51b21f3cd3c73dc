package terraform_test

import (
	"go/ast"
	"go/types"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/go/packages"

	"github.com/pushpool/pushpool/functions"
)

const (
	own    = "github.com/pushpool/pushpool/"
	google = "cloud.google.com/go/"
)

// program is the module's packages, with what each of their functions mentions.
type program struct {
	mentions map[types.Object][]types.Object
	types    []*types.Named // that methods can belong to
}

func load(t *testing.T) program {
	t.Helper()
	pkgs, err := packages.Load(&packages.Config{
		Mode: packages.LoadSyntax, Dir: root,
	}, "./functions/...", "./shared/...")
	if err != nil {
		t.Fatal(err)
	}
	p := program{mentions: map[types.Object][]types.Object{}}
	for _, pkg := range pkgs {
		for _, e := range pkg.Errors {
			t.Fatal(e)
		}
		for _, name := range pkg.Types.Scope().Names() {
			if tn, ok := pkg.Types.Scope().Lookup(name).(*types.TypeName); ok && !strings.HasSuffix(pkg.PkgPath, "test") {
				if named, ok := tn.Type().(*types.Named); ok && !types.IsInterface(named) && named.TypeParams() == nil {
					p.types = append(p.types, named)
				}
			}
		}
		for _, file := range pkg.Syntax {
			for _, d := range file.Decls {
				p.declare(pkg.TypesInfo, d)
			}
		}
	}
	return p
}

func (p program) declare(info *types.Info, d ast.Decl) {
	record := func(object types.Object, node ast.Node) {
		ast.Inspect(node, func(n ast.Node) bool {
			if id, ok := n.(*ast.Ident); ok {
				switch used := info.Uses[id].(type) {
				case *types.Func:
					p.mentions[object] = append(p.mentions[object], used.Origin())
				case *types.Var:
					if used.Parent() != nil && used.Pkg() != nil && used.Parent() == used.Pkg().Scope() {
						p.mentions[object] = append(p.mentions[object], used)
					}
				}
			}
			return true
		})
	}
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Body != nil {
			record(info.Defs[d.Name], d.Body)
		}
	case *ast.GenDecl:
		for _, s := range d.Specs {
			if v, ok := s.(*ast.ValueSpec); ok {
				for _, name := range v.Names {
					for _, value := range v.Values {
						record(info.Defs[name], value)
					}
				}
			}
		}
	}
}

// calls returns the functions and methods of Google's clients that can be reached from a
// package of ours, as package.Type.Method. A method called by way of an interface of ours
// reaches every method of our types that implements it.
func (p program) calls(from string) map[string]bool {
	found := map[string]bool{}
	seen := map[types.Object]bool{}
	var visit func(types.Object)
	visit = func(o types.Object) {
		if seen[o] {
			return
		}
		seen[o] = true
		if f, ok := o.(*types.Func); ok && f.Pkg() != nil {
			if path, ok := strings.CutPrefix(f.Pkg().Path(), google); ok && !strings.HasSuffix(path, "pb") {
				found[strings.TrimSuffix(path, "/apiv2")+"."+named(f)] = true
				return
			}
			if recv := f.Signature().Recv(); recv != nil && types.IsInterface(recv.Type()) && strings.HasPrefix(f.Pkg().Path(), own) {
				for _, method := range p.implementations(recv.Type(), f.Name()) {
					visit(method)
				}
			}
		}
		for _, mentioned := range p.mentions[o] {
			visit(mentioned)
		}
	}
	for o := range p.mentions {
		if o.Pkg().Path() == from {
			visit(o)
		}
	}
	return found
}

func (p program) implementations(iface types.Type, method string) []*types.Func {
	var found []*types.Func
	in, ok := iface.Underlying().(*types.Interface)
	if !ok {
		return nil
	}
	for _, n := range p.types {
		pointer := types.NewPointer(n)
		if !types.Implements(pointer, in) {
			continue
		}
		if m, _, _ := types.LookupFieldOrMethod(pointer, true, n.Obj().Pkg(), method); m != nil {
			if f, ok := m.(*types.Func); ok {
				found = append(found, f)
			}
		}
	}
	return found
}

// named returns Type.Method, or the name of a function.
func named(f *types.Func) string {
	recv := f.Signature().Recv()
	if recv == nil {
		return f.Name()
	}
	t := recv.Type()
	if pointer, ok := t.(*types.Pointer); ok {
		t = pointer.Elem()
	}
	if n, ok := t.(*types.Named); ok {
		return n.Obj().Name() + "." + f.Name()
	}
	return f.Name()
}

// asked are the permissions that a client's method asks for; none for what makes no call. The
// permissions of each method: https://cloud.google.com/iam/docs/permissions-reference.
var asked = map[string][]string{
	"run.NewJobsClient":       nil,
	"run.NewExecutionsClient": nil,
	"run.NewTasksClient":      nil,
	// With a start token, creating a job runs it.
	"run.JobsClient.CreateJob":             {"run.jobs.create", "run.jobs.run"},
	"run.JobsClient.GetJob":                {"run.jobs.get"},
	"run.JobsClient.ListJobs":              {"run.jobs.list"},
	"run.JobIterator.Next":                 {"run.jobs.list"},
	"run.JobsClient.RunJob":                {"run.jobs.run", "run.jobs.runWithOverrides"},
	"run.JobsClient.UpdateJob":             {"run.jobs.update", "run.jobs.run"},
	"run.JobsClient.DeleteJob":             {"run.jobs.delete"},
	"run.ExecutionsClient.GetExecution":    {"run.executions.get"},
	"run.ExecutionsClient.ListExecutions":  {"run.executions.list"},
	"run.ExecutionIterator.Next":           {"run.executions.list"},
	"run.JobIterator.PageInfo":             nil,
	"run.ExecutionIterator.PageInfo":       nil,
	"run.ExecutionsClient.CancelExecution": {"run.executions.cancel"},
	"run.TasksClient.GetTask":              {"run.tasks.get"},
	"run.TasksClient.ListTasks":            {"run.tasks.list"},

	"cloudtasks.NewClient":         nil,
	"cloudtasks.Client.CreateTask": {"cloudtasks.tasks.create", "iam.serviceAccounts.actAs"},
	"cloudtasks.Client.GetTask":    {"cloudtasks.tasks.get"},

	"pubsub/v2.NewClient":               nil,
	"pubsub/v2.Client.Publisher":        nil,
	"pubsub/v2.Publisher.Publish":       {"pubsub.topics.publish"},
	"pubsub/v2.Publisher.Stop":          nil,
	"internal/pubsub.PublishResult.Get": nil,

	// Of a view of a log bucket (https://cloud.google.com/logging/docs/access-control).
	"logging.NewClient":                 nil,
	"logging.LogEntryIterator.PageInfo": nil,
	"logging.Client.ListLogEntries":     {"logging.views.access"},
	"logging.LogEntryIterator.Next":     {"logging.views.access"},

	"firestore.NewClientWithDatabase":   nil,
	"firestore.Client.Collection":       nil,
	"firestore.CollectionRef.Doc":       nil,
	"firestore.DocumentRef.Create":      {"datastore.entities.create"},
	"firestore.DocumentRef.Get":         {"datastore.entities.get"},
	"firestore.DocumentRef.Update":      {"datastore.entities.update"},
	"firestore.LastUpdateTime":          nil,
	"firestore.DocumentSnapshot.DataTo": nil,
	"firestore.DocumentSnapshot.Exists": nil,
	"firestore.Client.RunTransaction":   {"datastore.entities.get"},
	"firestore.Transaction.Get":         {"datastore.entities.get"},
	"firestore.Transaction.Set":         {"datastore.entities.create", "datastore.entities.update"},
	"firestore.DocumentIterator.GetAll": {"datastore.entities.list"},
	"firestore.DocumentIterator.Next":   {"datastore.entities.list"},
	"firestore.DocumentIterator.Stop":   nil,
	"firestore.Query.Documents":         {"datastore.entities.list"},
	"firestore.Query.Limit":             nil,
	"firestore.Query.OrderBy":           nil,
	"firestore.Query.Where":             nil,
}

// roles are Google's own that the module grants, by what they are granted for
// (https://cloud.google.com/iam/docs/roles-permissions).
var roles = map[string][]string{
	"roles/datastore.user": {
		"datastore.entities.get", "datastore.entities.list", "datastore.entities.create", "datastore.entities.update", "datastore.entities.delete",
	},
	"roles/pubsub.publisher":             {"pubsub.topics.publish"},
	"roles/logging.viewAccessor":         {"logging.views.access"},
	"roles/iam.serviceAccountUser":       {"iam.serviceAccounts.actAs"},
	"roles/secretmanager.secretAccessor": {"secretmanager.versions.access"},
	"roles/artifactregistry.reader":      {"artifactregistry.repositories.downloadArtifacts"},

	"roles/artifactregistry.writer":              {"artifactregistry.repositories.uploadArtifacts"},
	"roles/cloudkms.cryptoKeyEncrypterDecrypter": {"cloudkms.cryptoKeyVersions.useToEncrypt"},
	"roles/iam.serviceAccountOpenIdTokenCreator": {"iam.serviceAccounts.getOpenIdToken"},
	"roles/logging.logWriter":                    {"logging.logEntries.create"},
	"roles/pubsub.subscriber":                    {"pubsub.subscriptions.consume"},
	"roles/run.invoker":                          {"run.routes.invoke"},
	"roles/storage.objectViewer":                 {"storage.objects.get"},
}

// unasked are permissions that no method names, with the reason why they are granted.
var unasked = map[string]string{
	"datastore.entities.delete": "part of the narrowest role that reads and writes",
	"datastore.entities.list":   "likewise",

	"secretmanager.versions.access":                   "Cloud Functions reads the secrets for the function",
	"artifactregistry.repositories.downloadArtifacts": "Cloud Run checks that who creates a job can read its image",
}

// grant is a permission on a resource; of a project-wide grant, on the project.
type grant struct{ permission, on string }

// permissions are those that a grant is made for.
func (o outcome) permissions(t *testing.T, member resource) []string {
	t.Helper()
	for _, r := range o.of("google_project_iam_custom_role") {
		if r.text("id") == member.text("role") {
			var all []string
			for _, p := range r.Values["permissions"].([]any) {
				all = append(all, p.(string))
			}
			return all
		}
	}
	if roles[member.text("role")] == nil {
		t.Errorf("%s grants %s: say in roles what it is for", member.Address, member.text("role"))
	}
	return roles[member.text("role")]
}

// grants returns what the identity of each function may do.
func grants(t *testing.T, o outcome) map[string]map[grant]bool {
	t.Helper()
	identity := map[string]string{}
	for _, r := range o.of("google_service_account") {
		identity[r.text("member")] = strings.TrimPrefix(r.text("account_id"), "pushpool-")
	}
	found := map[string]map[grant]bool{}
	for _, f := range functions.All() {
		found[f.Name] = map[grant]bool{}
	}
	for _, r := range o.resources {
		who, ok := found[identity[r.text("member")]]
		if !ok || !strings.HasSuffix(r.Type, "_iam_member") {
			continue
		}
		on := "project"
		for _, key := range []string{"topic", "secret_id", "service_account_id", "repository", "name"} {
			if s := r.text(key); s != "" {
				on = s
			}
		}
		for _, p := range o.permissions(t, r) {
			who[grant{p, on}] = true
		}
	}
	return found
}

func TestEachFunctionMayDoWhatItDoesAndNothingElse(t *testing.T) {
	o := applied(t, installation)
	p := load(t)
	may := grants(t, o)
	for _, f := range functions.All() {
		t.Run(f.Name, func(t *testing.T) {
			needed := map[string]string{} // by what
			for method := range p.calls(own + "functions/" + f.Name) {
				permissions, known := asked[method]
				if !known {
					t.Errorf("it calls %s: say in asked which permissions that takes, and grant them", method)
				}
				for _, permission := range permissions {
					needed[permission] = method
				}
			}
			granted := map[string]bool{}
			for g := range may[f.Name] {
				granted[g.permission] = true
				if needed[g.permission] == "" && unasked[g.permission] == "" {
					t.Errorf("it may %s on %s, which nothing asks for", g.permission, g.on)
				}
			}
			for permission, method := range needed {
				if !granted[permission] {
					t.Errorf("it calls %s and lacks %s", method, permission)
				}
			}
		})
	}
}

// What is granted on a resource is granted on the one that the function is told of.
func TestGrantsAreOnTheResourcesThatTheFunctionIsTold(t *testing.T) {
	o := applied(t, installation)
	account := map[string]string{} // names by e-mail
	for _, r := range o.of("google_service_account") {
		account[r.text("email")] = r.text("name")
	}
	queue := o.of("google_cloud_tasks_queue")[0]
	environment := environments(t, o)
	for name, have := range grants(t, o) {
		e := environment[name]
		want := []grant{{"pubsub.topics.publish", e["TOPIC_FLOW_RUNS"]}}
		if name != "webhook" {
			if e["TASKS_QUEUE"] != queue.text("id") {
				t.Errorf("%s: TASKS_QUEUE is %s", name, e["TASKS_QUEUE"])
			}
			want = append(want,
				grant{"pubsub.topics.publish", e["TOPIC_LIFECYCLE"]},
				grant{"logging.views.access", e["LOG_VIEW"][strings.LastIndex(e["LOG_VIEW"], "/")+1:]})
		}
		if name == "dispatcher" || name == "reconciler" {
			want = append(want, grant{"cloudtasks.tasks.create", queue.text("name")}, grant{"iam.serviceAccounts.actAs", account[e["TASKS_SERVICE_ACCOUNT"]]})
		}
		if topic := e["DEAD_LETTER_TOPIC"]; topic != "" {
			want = append(want, grant{"pubsub.topics.publish", topic})
		}
		for _, g := range want {
			if !have[g] {
				t.Errorf("%s may not %s on %s", name, g.permission, g.on)
			}
		}
		for _, wide := range []string{"pubsub.topics.publish", "cloudtasks.tasks.create", "iam.serviceAccounts.actAs", "secretmanager.versions.access", "logging.views.access"} {
			if have[grant{wide, "project"}] {
				t.Errorf("%s may %s in the whole project", name, wide)
			}
		}
	}
}

// What is granted on the project, where there is nothing narrower, and to whom.
func TestWhatIsGrantedOnTheProject(t *testing.T) {
	o := applied(t, installation)
	var got []string
	for _, r := range o.of("google_project_iam_member") {
		what := r.Name
		if r.block("condition") != nil {
			what += " (condition)"
		}
		got = append(got, what)
	}
	slices.Sort(got)
	want := []string{
		"build_copied_source (condition)", "build_logs", "launch",
		"ledger (condition)", "read", "stop",
	}
	if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// What containers write is read, and no other log of the project.
func TestTheFunctionsReadNoLogsButThoseOfJobs(t *testing.T) {
	o := applied(t, installation)
	views := o.of("google_logging_log_view")
	if len(views) != 1 {
		t.Fatalf("%d log views", len(views))
	}
	v := views[0]
	if f := v.text("filter"); f != `resource.type = "cloud_run_job"` {
		t.Errorf("%s shows %s", v.Address, f)
	}
	name := "locations/" + v.text("location") + "/buckets/" + v.text("bucket") + "/views/" + v.text("name")
	for function, e := range environments(t, o) {
		if told := e["LOG_VIEW"]; function != "webhook" && told != name {
			t.Errorf("%s is to read %q, the view is %s", function, told, name)
		}
	}
}

func TestEverybodyMayCallTheWebhookAndNothingElse(t *testing.T) {
	for _, r := range applied(t, installation).resources {
		if m := r.text("member"); (m == "allUsers" || m == "allAuthenticatedUsers") && r.Name != "webhook_public" {
			t.Errorf("%s is granted to %s", r.Address, m)
		}
	}
}
