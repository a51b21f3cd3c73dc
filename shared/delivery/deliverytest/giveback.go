package deliverytest

import (
	"context"
	"slices"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc"
)

// hold keeps negative acknowledgements, which only a Pusher that closes gives, until its last
// stream has ended: the server would hand the messages to a stream that nobody reads any
// more, and they would be gone until the lease is over.
func (p *Pusher) hold(ctx context.Context, method string, request, reply any, conn *grpc.ClientConn, invoke grpc.UnaryInvoker, o ...grpc.CallOption) error {
	r, ok := request.(*pubsubpb.ModifyAckDeadlineRequest)
	if !ok || r.AckDeadlineSeconds != 0 {
		return invoke(ctx, method, request, reply, conn, o...)
	}
	p.mu.Lock()
	ended := p.ended
	if !ended {
		p.returned = append(p.returned, r.AckIds...)
	}
	p.mu.Unlock()
	if ended {
		return invoke(ctx, method, request, reply, conn, o...)
	}
	return nil
}

// giveBack returns what was held. Where that fails the messages come back with the end of the lease.
func (p *Pusher) giveBack() {
	p.mu.Lock()
	ids := p.returned
	p.ended = true
	p.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), returnTimeout)
	defer cancel()
	for some := range slices.Chunk(ids, 1000) { // a request may have 512 KiB
		_ = p.client.SubscriptionAdminClient.ModifyAckDeadline(ctx, &pubsubpb.ModifyAckDeadlineRequest{
			Subscription: p.name("subscriptions", p.o.Subscription), AckIds: some, // no deadline: at once
		})
	}
}
