package ledger_test

import (
	"cmp"
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"cloud.google.com/go/firestore"
	"github.com/google/uuid"
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

// TestWhoWritesNothingTakesNoLock holds that the hundreds that ask whether somebody waits for a work pool's
// or a deployment's slot do so without a transaction, for which they would wait for each other.
func TestWhoWritesNothingTakesNoLock(t *testing.T) {
	addr := useEmulator(t)
	t.Setenv(emulator, "") // its client takes no interceptor
	var commits atomic.Int64
	l := newFirestore(t, option.WithEndpoint(addr), option.WithoutAuthentication(),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())), option.WithGRPCDialOption(grpc.WithChainUnaryInterceptor(
			func(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
				if strings.HasSuffix(method, "/Commit") {
					commits.Add(1)
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
		if !errors.Is(err, refused) || !errors.Is(derr, refused) || commits.Load() != want {
			t.Errorf("%v, %v and %d commits, want %v and %d", err, derr, commits.Load(), refused, want)
		}
	}
	ask(flowrun.ErrDone, 0)
	ask(nil, 2)
	ask(nil, 0) // it is so already
	ask(flowrun.ErrDone, 0)
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
	client, err := firestore.NewClient(t.Context(), "test-"+uuid.NewString(), options...)
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
