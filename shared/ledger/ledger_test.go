package ledger_test

import (
	"cmp"
	"context"
	"errors"
	"os"
	"path"
	"sync/atomic"
	"testing"

	"cloud.google.com/go/firestore"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/pushpool/pushpool/shared/flowrun"
	"github.com/pushpool/pushpool/shared/ledger"
	"github.com/pushpool/pushpool/shared/ledger/ledgertest"
)

func TestMemory(t *testing.T) {
	ledgertest.Run(t, func(*testing.T) ledger.Ledger { return ledger.NewMemory() })
}

// emulator is the variable that the Firestore client reads.
const emulator = "FIRESTORE_EMULATOR_HOST"

func TestFirestore(t *testing.T) {
	useEmulator(t)
	ledgertest.Run(t, func(t *testing.T) ledger.Ledger { return newFirestore(t) })
}

// TestNobodyTakesALock holds that the hundreds that ask for a work pool, a deployment or a region do so without
// a transaction, for which they would wait for each other, and write only what changed.
func TestNobodyTakesALock(t *testing.T) {
	addr := useEmulator(t)
	t.Setenv(emulator, "") // its client takes no interceptor
	var commits atomic.Int64
	l := newFirestore(t, option.WithEndpoint(addr), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())), option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(
			func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				switch path.Base(method) {
				case "Commit":
					commits.Add(1)
				case "BeginTransaction":
					t.Error("a transaction")
				}
				return invoke(ctx, method, req, reply, cc, opts...)
			})))
	ask := func(refused error, want int64) {
		t.Helper()
		commits.Store(0)
		_, err := l.UpdatePool(t.Context(), "etl", func(p flowrun.Pool) (flowrun.Pool, error) {
			p.Waits = true
			return p, refused
		})
		_, derr := l.UpdateDeployment(t.Context(), "d", func(d flowrun.Deployment) (flowrun.Deployment, error) {
			d.Waits = true
			return d, refused
		})
		_, rerr := l.UpdateRegion(t.Context(), "project/region", func(r flowrun.Region) (flowrun.Region, error) {
			r.Jobs = 1
			return r, refused
		})
		if !errors.Is(err, refused) || !errors.Is(derr, refused) || !errors.Is(rerr, refused) || commits.Load() != want {
			t.Errorf("%v, %v, %v and %d commits, want %v and %d", err, derr, rerr, commits.Load(), refused, want)
		}
	}
	ask(flowrun.ErrDone, 0)
	ask(nil, 3)
	ask(nil, 0) // it is so already
	ask(flowrun.ErrDone, 0)
}

// TestInstancesLoseNothing holds that what two instances change in one document at the same time is all in it.
func TestInstancesLoseNothing(t *testing.T) {
	useEmulator(t)
	project := "test-" + uuid.NewString()
	const changes = 50
	count := func(r flowrun.Region) (flowrun.Region, error) {
		r.Jobs++
		return r, nil
	}
	g, ctx := errgroup.WithContext(t.Context())
	for range 2 {
		l := firestoreOf(t, project)
		for range changes {
			g.Go(func() error {
				_, err := l.UpdateRegion(ctx, "r", count)
				return err
			})
		}
	}
	if err := g.Wait(); err != nil {
		t.Fatal(err)
	}
	if r, err := firestoreOf(t, project).UpdateRegion(t.Context(), "r", count); err != nil || r.Jobs != 2*changes+1 {
		t.Errorf("counted %d, %v, want %d", r.Jobs, err, 2*changes+1)
	}
}

// useEmulator lets Firestore's clients find the emulator, and skips the test where there is none.
func useEmulator(t *testing.T) (addr string) {
	t.Helper()
	addr = cmp.Or(os.Getenv("PUSHPOOL_TEST_FIRESTORE"), os.Getenv(emulator))
	if addr == "" {
		const hint = "set PUSHPOOL_TEST_FIRESTORE to host:port of `gcloud emulators firestore start`"
		if os.Getenv("CI") == "true" {
			t.Fatal(hint)
		}
		t.Skip(hint)
	}
	t.Setenv(emulator, addr)
	return addr
}

// newFirestore returns an empty ledger: the emulator makes a project when it is named.
func newFirestore(t *testing.T, options ...option.ClientOption) *ledger.Firestore {
	t.Helper()
	return firestoreOf(t, "test-"+uuid.NewString(), options...)
}

func firestoreOf(t *testing.T, project string, options ...option.ClientOption) *ledger.Firestore {
	t.Helper()
	client, err := firestore.NewClient(t.Context(), project, options...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	})
	return ledger.NewFirestore(client)
}
