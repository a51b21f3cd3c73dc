package ledger

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync"
	"time"

	"cloud.google.com/go/firestore"
	"google.golang.org/api/iterator"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pushpool/pushpool/shared/flowrun"
)

// Names in the ledger's database.
const (
	flowRunsCollection  = "flowRuns"
	workPoolsCollection = "workPools"
	regionsCollection   = "regions"

	deploymentsCollection = "deployments"
	sweepsCollection      = "sweeps"

	open = "open" // the field of stored
)

// callTimeout bounds one call to Firestore, with what it takes to try it again.
const callTimeout = 20 * time.Second

// Firestore is the ledger of a deployed installation.
type Firestore struct {
	client *firestore.Client
	turns  sync.Map // of a document's path: a chan struct{} that whoever writes to it has filled
}

// NewFirestore returns the ledger in the client's database. The client stays the caller's to close.
func NewFirestore(client *firestore.Client) *Firestore { return &Firestore{client: client} }

// stored is a record as Firestore holds it: with what queries need beside it.
type stored struct {
	flowrun.Record
	// Open is what Record.Open says, and is not there at all where that is false: one field
	// needs no composite index, and closed records no entry in it.
	Open bool `firestore:"open,omitempty"`
}

// Get implements Ledger.
func (f *Firestore) Get(ctx context.Context, flowRunID string) (flowrun.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	doc, err := f.client.Collection(flowRunsCollection).Doc(flowRunID).Get(ctx)
	r, err := decode(flowRunID, doc, err)
	if err != nil {
		return flowrun.Record{}, fmt.Errorf("read ledger record %s/%s: %w", flowRunsCollection, flowRunID, err)
	}
	return r, nil
}

// Update implements Ledger: it reads, changes and writes the record in a transaction.
func (f *Firestore) Update(ctx context.Context, flowRunID string, change func(flowrun.Record) (flowrun.Record, error)) (flowrun.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	ref := f.client.Collection(flowRunsCollection).Doc(flowRunID)
	var result flowrun.Record
	var refused error // change's own error, which is an answer and not a failure of Firestore
	err := f.client.RunTransaction(ctx, func(ctx context.Context, tx *firestore.Transaction) error {
		refused = nil
		doc, err := tx.Get(ref)
		before, err := decode(flowRunID, doc, err)
		if err != nil {
			return err
		}
		after, err := change(before)
		if err != nil {
			result, refused = before, err
			return nil
		}
		result = after
		return tx.Set(ref, stored{Record: after, Open: after.Open()})
	})
	if err != nil {
		return result, fmt.Errorf("update ledger record %s/%s: %w", ref.Parent.ID, ref.ID, err)
	}
	return result, refused
}

// UpdatePool implements Ledger.
func (f *Firestore) UpdatePool(ctx context.Context, name string, change func(flowrun.Pool) (flowrun.Pool, error)) (flowrun.Pool, error) {
	ref := f.client.Collection(workPoolsCollection).Doc(name)
	return updateShared(ctx, f, ref, func(p *flowrun.Pool) { p.Name = name }, change)
}

// UpdateRegion implements Ledger.
func (f *Firestore) UpdateRegion(ctx context.Context, name string, change func(flowrun.Region) (flowrun.Region, error)) (flowrun.Region, error) {
	ref := f.client.Collection(regionsCollection).Doc(strings.ReplaceAll(name, "/", " "))
	return updateShared(ctx, f, ref, func(r *flowrun.Region) { r.Name = name }, change)
}

// UpdateDeployment implements Ledger.
func (f *Firestore) UpdateDeployment(ctx context.Context, id string, change func(flowrun.Deployment) (flowrun.Deployment, error)) (flowrun.Deployment, error) {
	ref := f.client.Collection(deploymentsCollection).Doc(id)
	return updateShared(ctx, f, ref, func(d *flowrun.Deployment) { d.ID = id }, change)
}

// plain decodes a document that is stored as it is, and names what is new.
func plain[T any](name func(*T)) func(*firestore.DocumentSnapshot, error) (T, error) {
	return func(doc *firestore.DocumentSnapshot, err error) (T, error) {
		var v T
		if status.Code(err) != codes.NotFound {
			if err != nil {
				return v, err
			}
			if err := doc.DataTo(&v); err != nil {
				return v, err
			}
		}
		name(&v)
		return v, nil
	}
}

// UpdateSweep implements Ledger.
func (f *Firestore) UpdateSweep(ctx context.Context, change func(flowrun.Sweep) (flowrun.Sweep, error)) (flowrun.Sweep, error) {
	return updateShared(ctx, f, f.client.Collection(sweepsCollection).Doc("current"), func(*flowrun.Sweep) {}, change)
}

// updateShared changes a document that hundreds of flow runs ask for. It takes no lock, as a transaction does: two
// instances that both read before they write would wait for each other, for seconds. It writes only what changed,
// where nobody wrote since it was read; those of one process that write take turns.
func updateShared[T any](ctx context.Context, f *Firestore, ref *firestore.DocumentRef, name func(*T), change func(T) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	made, _ := f.turns.LoadOrStore(ref.Path, make(chan struct{}, 1))
	turn := made.(chan struct{}) //nolint:forcetypeassert // there is nothing else in it
	mine, decode := false, plain(name)
	for {
		doc, err := ref.Get(ctx)
		before, err := decode(doc, err)
		if err != nil {
			return before, fmt.Errorf("read ledger record %s/%s: %w", ref.Parent.ID, ref.ID, err)
		}
		after, refused := change(before)
		if refused != nil || reflect.DeepEqual(before, after) {
			return before, refused
		}
		if !mine {
			waited, err := take(ctx, turn)
			if err != nil {
				return before, fmt.Errorf("update ledger record %s/%s: %w", ref.Parent.ID, ref.ID, err)
			}
			defer func() { <-turn }()
			if mine = true; waited {
				continue
			}
		}
		if doc.Exists() {
			_, err = ref.Update(ctx, fields(after), firestore.LastUpdateTime(doc.UpdateTime))
		} else {
			_, err = ref.Create(ctx, after)
		}
		switch status.Code(err) {
		case codes.OK:
			return after, nil
		case codes.FailedPrecondition, codes.AlreadyExists, codes.NotFound, codes.Aborted: // somebody else wrote it, or the ledger was lost
			continue
		}
		return before, fmt.Errorf("update ledger record %s/%s: %w", ref.Parent.ID, ref.ID, err)
	}
}

// take takes the turn, and reports whether somebody else had it.
func take(ctx context.Context, turn chan struct{}) (waited bool, err error) {
	select {
	case turn <- struct{}{}:
		return false, nil
	default:
	}
	select {
	case turn <- struct{}{}:
		return true, nil
	case <-ctx.Done():
		return true, context.Cause(ctx)
	}
}

// fields are those of a document, each replaced as a whole.
func fields(v any) []firestore.Update {
	var all []firestore.Update
	for _, f := range reflect.VisibleFields(reflect.TypeOf(v)) {
		if path := f.Tag.Get("firestore"); path != "" {
			all = append(all, firestore.Update{Path: path, Value: reflect.ValueOf(v).FieldByIndex(f.Index).Interface()})
		}
	}
	return all
}

// Open implements Ledger.
func (f *Firestore) Open(ctx context.Context) ([]flowrun.Record, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	docs := f.client.Collection(flowRunsCollection).Where(open, "==", true).Documents(ctx)
	defer docs.Stop()
	var found []flowrun.Record
	for {
		doc, err := docs.Next()
		if errors.Is(err, iterator.Done) {
			return found, nil
		}
		if err != nil {
			return nil, fmt.Errorf("query what is open in the ledger: %w", err)
		}
		r, err := decode(doc.Ref.ID, doc, nil)
		if err != nil {
			return nil, fmt.Errorf("read ledger record %s/%s: %w", flowRunsCollection, doc.Ref.ID, err)
		}
		found = append(found, r)
	}
}

// ByExecution implements Ledger.
func (f *Firestore) ByExecution(ctx context.Context, name string) (flowrun.Record, bool, error) {
	if name == "" { // what every launch has before its execution is there
		return flowrun.Record{}, false, nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	docs, err := f.client.Collection(flowRunsCollection).Where("executionName", "==", name).Limit(1).Documents(ctx).GetAll()
	if err != nil || len(docs) == 0 {
		if err != nil {
			err = fmt.Errorf("query the ledger for execution %s: %w", name, err)
		}
		return flowrun.Record{}, false, err
	}
	r, err := decode(docs[0].Ref.ID, docs[0], nil)
	return r, err == nil, err
}

func decode(flowRunID string, doc *firestore.DocumentSnapshot, err error) (flowrun.Record, error) {
	s, err := plain(func(s *stored) { s.FlowRunID = flowRunID })(doc, err)
	return s.Record, err
}
