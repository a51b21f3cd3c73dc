package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"github.com/pushpool/pushpool/scripts/pushpool/deadletter"
	"github.com/pushpool/pushpool/scripts/pushpool/operator"
	"github.com/pushpool/pushpool/shared/publish"
)

type deadLettersCommand struct {
	List   listLettersCommand  `cmd:"" help:"List the dead letters, with the reason each died of."`
	Show   showLetterCommand   `cmd:"" help:"Show one dead letter whole."`
	Replay replayLetterCommand `cmd:"" help:"Publish dead letters again where they came from. A run request that a function moved stays the same request."`
	Drop   dropLettersCommand  `cmd:"" help:"Remove dead letters for good."`
}

// Help shows examples.
func (deadLettersCommand) Help() string {
	return `A dead letter is a message that could not be processed: the function refused it for good, or failed on it until its delivery
attempts were used up. It is kept for 31 days. To replay one is safe: a run request stays the same request, and everything else
only has somebody look again. A run request without idempotency_key that Pub/Sub itself moved, because no function answered, is
not replayed unless you say --as-new: it comes back under another id, and makes another flow run.

Examples:

  pushpool deadletters list
  pushpool deadletters show 1234567890
  pushpool deadletters replay --function dispatcher --reason "no deployment" --dry-run
  pushpool deadletters drop --older 168h --yes`
}

// letterFilter says which letters are meant.
type letterFilter struct {
	ID       []string      `arg:"" optional:"" help:"The ids of the dead letters; all that match if none is given."`
	Function string        `help:"Only those that this function could not process." enum:",dispatcher,finalizer" default:""`
	Reason   string        `help:"Only those whose reason has this text."`
	Older    time.Duration `help:"Only those that have been there for longer than this, such as 1h."`
	Most     int           `help:"At most so many." default:"1000"`
}

func (f letterFilter) match(l deadletter.Letter) bool {
	return (len(f.ID) == 0 || slices.Contains(f.ID, l.ID)) && (f.Function == "" || l.Function == f.Function) &&
		strings.Contains(strings.ToLower(l.Reason), strings.ToLower(f.Reason)) && time.Since(l.Published) >= f.Older
}

// box takes the letters that are meant. The caller closes it.
func (f letterFilter) box(ctx context.Context, g globals) (in *operator.Installation, box *deadletter.Box, letters []deadletter.Letter, done func(), err error) {
	if in, err = g.open(ctx); err != nil {
		return nil, nil, nil, nil, err
	}
	client, err := in.PubSub(ctx)
	if err != nil {
		return nil, nil, nil, nil, err
	}
	done = func() { _ = client.Close() }
	box = deadletter.NewBox(client, in.Project, in.DeadLetterSubscriptions)
	stop := progress("pulling dead letters from %s", strings.Join(in.DeadLetterSubscriptions, ", "))
	letters, err = box.Take(ctx, f.Most, f.match)
	stop()
	if err == nil && len(f.ID) > len(letters) {
		err = fmt.Errorf("of the dead letters named, %d were not found; `pushpool deadletters list` shows those that are there (one that somebody else just looked at comes back within ten minutes)", len(f.ID)-len(letters))
	}
	if err != nil {
		_ = box.Release(ctx, letters)
		done()
		return nil, nil, nil, nil, err
	}
	return in, box, letters, done, nil
}

type listLettersCommand struct {
	globals
	letterFilter
}

// Run lists the letters.
func (c *listLettersCommand) Run(ctx context.Context) error {
	_, box, letters, done, err := c.box(ctx, c.globals)
	if err != nil {
		return err
	}
	defer done()
	if err := box.Release(ctx, letters); err != nil {
		return err
	}
	if letters == nil {
		letters = []deadletter.Letter{}
	}
	return c.print(letters, func(w io.Writer) { listLetters(w, letters) })
}

func listLetters(w io.Writer, letters []deadletter.Letter) {
	if len(letters) == 0 {
		fmt.Fprintln(w, "no dead letters")
		return
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "ID\tSINCE\tFUNCTION\tREASON")
	for _, l := range letters {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", l.ID, l.Published.Format(time.RFC3339), cmp.Or(l.Function, "?"), strings.ReplaceAll(l.Reason, "\n", "; "))
	}
	_ = t.Flush()
}

type showLetterCommand struct {
	globals
	ID string `arg:"" help:"The dead letter's id."`
}

// Run shows the letter.
func (c *showLetterCommand) Run(ctx context.Context) error {
	_, box, letters, done, err := letterFilter{ID: []string{c.ID}, Most: 1}.box(ctx, c.globals)
	if err != nil {
		return err
	}
	defer done()
	if err := box.Release(ctx, letters); err != nil {
		return err
	}
	return c.print(letters[0], func(w io.Writer) {
		l := letters[0]
		fmt.Fprintf(w, "id            %s\nsubscription  %s\nsince         %s\nfunction      %s\nfirst id      %s\nreason        %s\n",
			l.ID, l.Subscription, l.Published.Format(time.RFC3339), l.Function, l.FirstMessageID, l.Reason)
		fmt.Fprintf(w, "data          %s\n", l.Data)
	})
}

type replayLetterCommand struct {
	globals
	letterFilter
	DryRun bool `help:"Say what would be published, and publish nothing."`
	AsNew  bool `help:"Publish also run requests without idempotency_key that Pub/Sub itself moved: each makes another flow run, even if it made one before."`
	Yes    bool `short:"y" help:"Do not ask."`
}

// apart returns the letters that may be published again, and as an error those that may not.
func (c *replayLetterCommand) apart(letters []deadletter.Letter) (again, others []deadletter.Letter, err error) {
	var said []error
	for _, l := range letters {
		deployment := l.Another()
		if c.AsNew || deployment == "" {
			again = append(again, l)
			continue
		}
		others = append(others, l)
		flow, _, _ := strings.Cut(deployment, "/")
		said = append(said, fmt.Errorf("dead letter %s stays: it asks for a flow run of %s without an idempotency_key, and Pub/Sub moved it, which hides its first id; published again it would make a second flow run if it made one before; look (`prefect flow-run ls --flow-name %s`), then `pushpool deadletters drop %s` if its flow run is there, `pushpool deadletters replay %s --as-new` if not",
			l.ID, deployment, flow, l.ID, l.ID))
	}
	return again, others, errors.Join(said...)
}

// Run publishes the letters again.
func (c *replayLetterCommand) Run(ctx context.Context) error {
	in, box, letters, done, err := c.box(ctx, c.globals)
	if err != nil {
		return err
	}
	defer done()
	letters, others, stay := c.apart(letters)
	if err := box.Release(ctx, others); err != nil || len(letters) == 0 && stay != nil {
		return errors.Join(stay, err)
	}
	if ok, err := meant(ctx, c.globals, box, letters, c.DryRun, c.Yes, "publish again"); !ok {
		return errors.Join(stay, err)
	}
	client, err := in.PubSub(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	flowRuns, executions := publish.New(client, in.FlowRuns), publish.New(client, in.Executions)
	defer flowRuns.Close()
	defer executions.Close()
	published := map[string]string{}
	still := progressEvery(2*time.Second, fmt.Sprintf("publishing %d dead letters again", len(letters)))
	defer still()
	for i, l := range letters {
		id, err := box.Replay(ctx, l, deadletter.Topics{"dispatcher": flowRuns, "finalizer": executions})
		if err != nil {
			_ = box.Release(ctx, letters[i:])
			return fmt.Errorf("%w; %d of %d were published again, the others stay", err, i, len(letters))
		}
		published[l.ID] = id
	}
	return errors.Join(stay, c.print(published, func(w io.Writer) {
		for _, l := range letters {
			fmt.Fprintf(w, "%s published again as %s\n", l.ID, published[l.ID])
		}
		fmt.Fprintf(w, "%d published again\n", len(letters))
	}))
}

type dropLettersCommand struct {
	globals
	letterFilter
	DryRun bool `help:"Say what would be removed, and remove nothing."`
	Yes    bool `short:"y" help:"Do not ask."`
}

// Run removes the letters.
func (c *dropLettersCommand) Run(ctx context.Context) error {
	_, box, letters, done, err := c.box(ctx, c.globals)
	if err != nil {
		return err
	}
	defer done()
	if ok, err := meant(ctx, c.globals, box, letters, c.DryRun, c.Yes, "remove"); !ok {
		return err
	}
	stop := progress("removing %d dead letters", len(letters))
	defer stop()
	if err := box.Drop(ctx, letters); err != nil {
		return err
	}
	return c.print(map[string]int{"dropped": len(letters)}, func(w io.Writer) { fmt.Fprintf(w, "%d dropped\n", len(letters)) })
}

// confirmed asks whether it is meant, where there are several.
func confirmed(ctx context.Context, yes bool, letters []deadletter.Letter, what string) (bool, error) {
	if yes || len(letters) <= 1 {
		return true, nil
	}
	if !term.IsTerminal(int(os.Stdin.Fd())) {
		return false, fmt.Errorf("%d dead letters match; repeat it with --yes to %s all of them, or name some", len(letters), what)
	}
	return agreed(ctx, false, fmt.Sprintf("%s %d dead letters", what, len(letters)))
}

// meant gives the letters back and lists them where nothing is to be done with them, and says whether something is.
func meant(ctx context.Context, g globals, box *deadletter.Box, letters []deadletter.Letter, dry, yes bool, what string) (bool, error) {
	ok, err := false, error(nil)
	if !dry {
		ok, err = confirmed(ctx, yes, letters, what)
	}
	if ok {
		return true, nil
	}
	if err := errors.Join(err, box.Release(ctx, letters)); err != nil || !dry {
		return false, err
	}
	return false, g.print(letters, func(w io.Writer) { listLetters(w, letters) })
}
