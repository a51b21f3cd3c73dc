package cloudruntest

import (
	"context"

	"cloud.google.com/go/longrunning/autogen/longrunningpb"
	"github.com/google/uuid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
)

// operation returns a new long-running operation on subject, which is its metadata. look
// finishes it once there is something to tell. The caller of both holds s.mu.
func (s *Server) operation(parent string, subject proto.Message, look func(*longrunningpb.Operation)) *longrunningpb.Operation {
	name := parent + "/operations/" + uuid.NewString()
	read := func() *longrunningpb.Operation {
		op := &longrunningpb.Operation{Name: name, Metadata: pack(subject)}
		look(op)
		return op
	}
	s.operations[name] = read
	return read()
}

// finish ends an operation with its response or, where failed is set, an error.
func finish(op *longrunningpb.Operation, response proto.Message, failed *status.Status) {
	op.Done = true
	if failed != nil {
		op.Result = &longrunningpb.Operation_Error{Error: failed.Proto()}
		return
	}
	op.Result = &longrunningpb.Operation_Response{Response: pack(response)}
}

func finished(response proto.Message) func(*longrunningpb.Operation) {
	return func(op *longrunningpb.Operation) { finish(op, response, nil) }
}

func pack(m proto.Message) *anypb.Any {
	a, err := anypb.New(m)
	if err != nil {
		panic(err) // a label of ours that is not UTF-8 never gets past the wire
	}
	return a
}

// GetOperation reads an operation.
func (s *Server) GetOperation(_ context.Context, r *longrunningpb.GetOperationRequest) (*longrunningpb.Operation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	read := s.operations[r.GetName()]
	if read == nil {
		return nil, status.Errorf(codes.NotFound, "Requested entity was not found: %s", r.GetName())
	}
	return read(), nil
}
