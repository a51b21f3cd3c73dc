// Package deliverytest is Pub/Sub on one machine: topics and push subscriptions.
package deliverytest

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"cloud.google.com/go/pubsub/v2/pstest"
	"google.golang.org/api/option"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// maxRequest is Pub/Sub's bound on a publish request, 10 MB, in base64.
const maxRequest = 14 << 20

// Options say where a PubSub listens.
type Options struct {
	Addr string // host:port; empty: a free port on 127.0.0.1
}

// PubSub is Pub/Sub in this process. One port serves gRPC, as the client libraries and
// PUBSUB_EMULATOR_HOST expect, and of the REST API what curl, gcloud and Cloud Tasks need:
// PUT and GET of a topic, and :publish. It is pstest underneath, so it keeps every message
// in memory, forgets one that nobody pulled for ten minutes, and does not push: see Pusher.
type PubSub struct {
	fake     *pstest.Server
	grpc     *grpc.Server
	http     *http.Server
	listener net.Listener
}

// NewPubSub starts a PubSub. Close it.
func NewPubSub(o Options) (*PubSub, error) {
	listener, err := net.Listen("tcp", cmp.Or(o.Addr, "127.0.0.1:0"))
	if err != nil {
		return nil, fmt.Errorf("listen for Pub/Sub: %w", err)
	}
	p := &PubSub{fake: pstest.NewServer(), grpc: grpc.NewServer(grpc.MaxRecvMsgSize(maxRequest)), listener: listener}
	pubsubpb.RegisterPublisherServer(p.grpc, &p.fake.GServer)
	pubsubpb.RegisterSubscriberServer(p.grpc, &p.fake.GServer)
	pubsubpb.RegisterSchemaServiceServer(p.grpc, &p.fake.GServer)

	rest := http.NewServeMux()
	rest.HandleFunc("GET /v1/projects/{project}/topics/{topic}", p.getTopic)
	rest.HandleFunc("PUT /v1/projects/{project}/topics/{topic}", p.createTopic)
	rest.HandleFunc("POST /v1/projects/{project}/topics/{topic}", p.publish)
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	p.http = &http.Server{
		Protocols: protocols, ReadHeaderTimeout: 10 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.ProtoMajor == 2 && strings.HasPrefix(r.Header.Get("Content-Type"), "application/grpc") {
				p.grpc.ServeHTTP(w, r)
				return
			}
			rest.ServeHTTP(w, r)
		}),
	}
	go func() { _ = p.http.Serve(listener) }() // ends with ErrServerClosed
	return p, nil
}

// Addr returns host:port, as PUBSUB_EMULATOR_HOST wants it.
func (p *PubSub) Addr() string { return p.listener.Addr().String() }

// Server returns the server underneath, for what tests want to see or to break.
func (p *PubSub) Server() *pstest.Server { return p.fake }

// Close ends all connections and frees the port.
func (p *PubSub) Close() error {
	p.grpc.Stop()
	return errors.Join(p.http.Close(), p.fake.Close())
}

// ClientOptions connect a client of cloud.google.com/go/pubsub/v2 to a Pub/Sub emulator.
func ClientOptions(addr string) []option.ClientOption {
	return []option.ClientOption{
		option.WithEndpoint(addr), option.WithoutAuthentication(), option.WithTelemetryDisabled(),
		option.WithGRPCConnectionPool(1),
		option.WithGRPCDialOption(grpc.WithTransportCredentials(insecure.NewCredentials())),
	}
}

func (p *PubSub) getTopic(w http.ResponseWriter, r *http.Request) {
	topic, err := p.fake.GServer.GetTopic(r.Context(), &pubsubpb.GetTopicRequest{Topic: topicName(r, r.PathValue("topic"))})
	answer(w, topic, err)
}

func (p *PubSub) createTopic(w http.ResponseWriter, r *http.Request) {
	topic, err := p.fake.GServer.CreateTopic(r.Context(), &pubsubpb.Topic{Name: topicName(r, r.PathValue("topic"))})
	answer(w, topic, err)
}

func (p *PubSub) publish(w http.ResponseWriter, r *http.Request) {
	topic, ok := strings.CutSuffix(r.PathValue("topic"), ":publish")
	if !ok {
		answer(w, nil, status.Errorf(codes.Unimplemented, "POST %s: only :publish is served here", r.URL.Path))
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxRequest))
	if err != nil {
		answer(w, nil, status.Errorf(codes.InvalidArgument, "read request: %v", err))
		return
	}
	var request pubsubpb.PublishRequest
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(body, &request); err != nil {
		answer(w, nil, status.Errorf(codes.InvalidArgument, "decode request: %v", err))
		return
	}
	request.Topic = topicName(r, topic)
	response, err := p.publishChecked(r.Context(), &request)
	answer(w, response, err)
}

// publishChecked refuses what Pub/Sub refuses and pstest does not.
func (p *PubSub) publishChecked(ctx context.Context, request *pubsubpb.PublishRequest) (*pubsubpb.PublishResponse, error) {
	if len(request.Messages) == 0 {
		return nil, status.Error(codes.InvalidArgument, "the request has no messages")
	}
	for _, m := range request.Messages {
		if len(m.Data) == 0 && len(m.Attributes) == 0 {
			return nil, status.Error(codes.InvalidArgument, "a message needs data or an attribute")
		}
	}
	return p.fake.GServer.Publish(ctx, request)
}

func topicName(r *http.Request, topic string) string {
	return fmt.Sprintf("projects/%s/topics/%s", r.PathValue("project"), topic)
}

// answer writes a message, or an error as Google's REST APIs shape it.
func answer(w http.ResponseWriter, m proto.Message, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err == nil {
		var body []byte
		if body, err = protojson.Marshal(m); err == nil {
			_, _ = w.Write(body)
			return
		}
	}
	s := status.Convert(err)
	code, name := http.StatusInternalServerError, "INTERNAL"
	switch s.Code() {
	case codes.NotFound:
		code, name = http.StatusNotFound, "NOT_FOUND"
	case codes.AlreadyExists:
		code, name = http.StatusConflict, "ALREADY_EXISTS"
	case codes.InvalidArgument:
		code, name = http.StatusBadRequest, "INVALID_ARGUMENT"
	case codes.Unimplemented:
		code, name = http.StatusNotImplemented, "UNIMPLEMENTED"
	case codes.Unavailable:
		code, name = http.StatusServiceUnavailable, "UNAVAILABLE"
	}
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"code": code, "message": s.Message(), "status": name}})
}
