package ledger

import (
	"context"
	"errors"
	"fmt"
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

// callTimeout bounds one call to Firestore, transactions with their retries included.
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

func encode(r flowrun.Record) any { return stored{Record: r, Open: r.Open()} }

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

// Update implements Ledger.
func (f *Firestore) Update(ctx context.Context, flowRunID string, change func(flowrun.Record) (flowrun.Record, error)) (flowrun.Record, error) {
	ref := f.client.Collection(flowRunsCollection).Doc(flowRunID)
	return update(ctx, f.client, ref,
		func(doc *firestore.DocumentSnapshot, err error) (flowrun.Record, error) {
			return decode(flowRunID, doc, err)
		},
		change, encode)
}

// UpdatePool implements Ledger.
func (f *Firestore) UpdatePool(ctx context.Context, name string, change func(flowrun.Pool) (flowrun.Pool, error)) (flowrun.Pool, error) {
	ref := f.client.Collection(workPoolsCollection).Doc(name)
	return lookAndUpdate(ctx, f, ref, plain(func(p *flowrun.Pool) { p.Name = name }), change, func(p flowrun.Pool) any { return p })
}

// UpdateRegion implements Ledger.
func (f *Firestore) UpdateRegion(ctx context.Context, name string, change func(flowrun.Region) (flowrun.Region, error)) (flowrun.Region, error) {
	ref := f.client.Collection(regionsCollection).Doc(strings.ReplaceAll(name, "/", " "))
	return update(ctx, f.client, ref, plain(func(r *flowrun.Region) { r.Name = name }), change, func(r flowrun.Region) any { return r })
}

// UpdateDeployment implements Ledger.
func (f *Firestore) UpdateDeployment(ctx context.Context, id string, change func(flowrun.Deployment) (flowrun.Deployment, error)) (flowrun.Deployment, error) {
	ref := f.client.Collection(deploymentsCollection).Doc(id)
	return lookAndUpdate(ctx, f, ref, plain(func(d *flowrun.Deployment) { d.ID = id }), change, func(d flowrun.Deployment) any { return d })
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
	return update(ctx, f.client, f.client.Collection(sweepsCollection).Doc("current"), plain(func(*flowrun.Sweep) {}), change,
		func(s flowrun.Sweep) any { return s })
}

// lookAndUpdate is update of a document that hundreds of flow runs ask for, and few change. Who leaves it
// as it is takes no part in a transaction, whose locks the others would wait for, and those of one
// process that do not take turns: transactions that all read before they write wait for each other.
func lookAndUpdate[T comparable](ctx context.Context, f *Firestore, ref *firestore.DocumentRef,
	decode func(*firestore.DocumentSnapshot, error) (T, error), change func(T) (T, error), encode func(T) any,
) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	look := func() (before T, same bool, refused error) {
		before, err := decode(ref.Get(ctx))
		if err != nil {
			return before, false, nil // the transaction tells
		}
		after, refused := change(before)
		return before, refused != nil || after == before, refused
	}
	if before, same, refused := look(); same {
		return before, refused
	}
	made, _ := f.turns.LoadOrStore(ref.Path, make(chan struct{}, 1))
	turn := made.(chan struct{}) //nolint:forcetypeassert // there is nothing else in it
	select {
	case turn <- struct{}{}:
		defer func() { <-turn }()
	case <-ctx.Done():
		var none T
		return none, fmt.Errorf("update ledger record %s/%s: %w", ref.Parent.ID, ref.ID, context.Cause(ctx))
	}
	if before, same, refused := look(); same { // somebody else wrote it meanwhile
		return before, refused
	}
	return update(ctx, f.client, ref, decode, change, encode)
}

// update reads, changes and writes one document in a transaction.
func update[T any](ctx context.Context, client *firestore.Client, ref *firestore.DocumentRef,
	decode func(*firestore.DocumentSnapshot, error) (T, error), change func(T) (T, error), encode func(T) any,
) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	var result T
	var refused error // change's own error, which is an answer and not a failure of Firestore
	err := client.RunTransaction(ctx, func(ctx context.Context, tx *firestore.Transaction) error {
		refused = nil
		before, err := decode(tx.Get(ref))
		if err != nil {
			return err
		}
		after, err := change(before)
		if err != nil {
			result, refused = before, err
			return nil
		}
		result = after
		return tx.Set(ref, encode(after))
	})
	if err != nil {
		return result, fmt.Errorf("update ledger record %s/%s: %w", ref.Parent.ID, ref.ID, err)
	}
	return result, refused
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
