package simulate

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"path"
	"strconv"
	"time"

	"cloud.google.com/go/cloudtasks/apiv2/cloudtaskspb"
	"cloud.google.com/go/pubsub/v2/apiv1/pubsubpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// Back-off and deadline of the functions' subscriptions, as terraform sets them.
const (
	minBackoff  = 10 * time.Second
	maxBackoff  = 10 * time.Minute
	ackDeadline = 75 * time.Second
	maxAttempts = 100
)

// message is a message of a topic on its way to a function.
type message struct {
	name      string // the same in every run
	id        string
	data      []byte
	attrs     map[string]string
	published time.Time
	to        *installation
	function  string
	attempt   int
	acked     bool
}

// pubsub is Pub/Sub, and Cloud Tasks, whose tasks publish.
type pubsub struct {
	pubsubpb.UnimplementedPublisherServer
	cloudtaskspb.UnimplementedCloudTasksServer
	w     *world
	tasks map[string]*cloudtaskspb.Task
	taken map[string]bool
	dead  []*message // dead letters
}

// Publish implements the publisher's server.
func (p *pubsub) Publish(_ context.Context, r *pubsubpb.PublishRequest) (*pubsubpb.PublishResponse, error) {
	answer := &pubsubpb.PublishResponse{}
	for _, m := range r.GetMessages() {
		answer.MessageIds = append(answer.MessageIds, p.publish(path.Base(r.GetTopic()), m.GetData(), m.GetAttributes()))
	}
	return answer, nil
}

// publish takes a message; topics are named for the installation: pushpool-flow-runs.
func (p *pubsub) publish(topic string, data []byte, attrs map[string]string) (id string) {
	m := &message{
		name: p.w.nth(topic + " " + p.w.label(string(data))), data: data, attrs: attrs, published: time.Now(), function: "dispatcher",
	}
	m.id = strconv.FormatUint(p.w.dice.of("id "+m.name).Uint64(), 10)
	for _, of := range p.w.installations {
		switch topic {
		case of.name + "-flow-runs":
			m.to = of
		case of.name + "-dead-letter":
			p.dead = append(p.dead, m)
			p.w.onDeadLetter(m)
			return m.id
		}
	}
	if m.to == nil {
		panic("no topic " + topic)
	}
	p.send(m, !p.w.precious(data))
	return m.id
}

// send delivers a message, or does what a fault makes of it. What nobody could know of once it
// is lost, a run request, is not lost: Pub/Sub does not lose it either.
func (p *pubsub) send(m *message, losable bool) {
	w := p.w
	r := w.dice.of("message " + m.name)
	delay := between(r, 10*time.Millisecond, 200*time.Millisecond)
	kind := w.chooseMessage(r, m.name)
	switch kind {
	case MessageLost:
		if losable {
			w.struck(kind, false, nil, m.name)
			return
		}
	case MessageDuplicated:
		w.struck(kind, false, nil, m.name)
		for n := range 1 + r.IntN(4) {
			w.faulted++
			again := *m
			again.name += fmt.Sprintf(" again %d", n+1)
			p.later(&again, delay+between(r, time.Millisecond, 3*time.Minute))
		}
	case MessageReordered:
		w.struck(kind, false, nil, m.name)
		w.faulted++
		delay = between(r, 2*time.Second, 20*time.Second)
	case MessageDelayed:
		w.struck(kind, false, nil, m.name)
		w.faulted++
		delay = between(r, 2*time.Minute, 3*time.Hour)
	}
	p.later(m, delay)
}

func (p *pubsub) later(m *message, delay time.Duration) {
	p.w.inFlight[m] = true
	p.w.loop.at(time.Now().Add(delay), m.name, func() { p.deliver(m) })
}

// deliver pushes the message once.
func (p *pubsub) deliver(m *message) {
	if m.acked {
		return
	}
	w := p.w
	m.attempt++
	name := fmt.Sprintf("%s/%d", m.name, m.attempt)
	body, _ := json.Marshal(map[string]any{ // of strings and numbers
		"message": map[string]any{
			"data": m.data, "attributes": m.attrs, "messageId": m.id, "publishTime": m.published.UTC().Format(time.RFC3339Nano),
		},
		"subscription": "projects/" + project + "/subscriptions/" + m.to.name + "-" + m.function, "deliveryAttempt": m.attempt,
	})
	settled := false
	settle := func(acked bool) {
		if settled {
			return
		}
		settled = true
		switch {
		case acked || m.attempt >= maxAttempts:
			m.acked = true
			delete(w.inFlight, m)
		default:
			backoff := min(maxBackoff, minBackoff<<min(m.attempt-1, 10))
			w.loop.at(time.Now().Add(backoff+between(w.dice.of("backoff "+name), 0, time.Second)), name+"|again", func() { p.deliver(m) })
		}
	}
	w.loop.at(time.Now().Add(ackDeadline), name+"|deadline", func() { settle(false) })
	m.to.serve(m.function, name, http.MethodPost, body, nil, func(status int) {
		acked := status >= 200 && status < 300
		if acked && w.chooseMessage(w.dice.of("answer "+name), name) == PushTimeout {
			w.struck(PushTimeout, false, nil, name)
			w.faulted++
			acked = false
		}
		settle(acked)
	})
}

// entry delivers an audit entry to everybody's sink.
func (p *pubsub) entry(data []byte) {
	for _, of := range p.w.installations {
		m := &message{name: p.w.nth(of.name + "-executions " + p.w.entryLabel(data)), data: data, published: time.Now(), to: of, function: "finalizer"}
		m.id = strconv.FormatUint(p.w.dice.of("id "+m.name).Uint64(), 10)
		p.send(m, true)
	}
}

// CreateTask implements Cloud Tasks.
func (p *pubsub) CreateTask(_ context.Context, r *cloudtaskspb.CreateTaskRequest) (*cloudtaskspb.Task, error) {
	t := r.GetTask()
	if p.taken[t.GetName()] {
		return nil, status.Error(codes.AlreadyExists, "Requested entity already exists")
	}
	p.taken[t.GetName()] = true
	t = proto.CloneOf(t)
	p.tasks[t.GetName()] = t
	queue := path.Base(r.GetParent()) // named for the installation
	data := taskData(t)
	name := "task " + queue + " " + p.w.label(string(data)) + " " + strconv.FormatInt(t.GetScheduleTime().AsTime().UnixNano(), 36)
	p.w.loop.at(t.GetScheduleTime().AsTime(), name, func() {
		delete(p.tasks, t.GetName())
		p.publish(queue+"-flow-runs", data, nil)
	})
	return t, nil
}

// GetTask implements Cloud Tasks.
func (p *pubsub) GetTask(_ context.Context, r *cloudtaskspb.GetTaskRequest) (*cloudtaskspb.Task, error) {
	if t := p.tasks[r.GetName()]; t != nil {
		return t, nil
	}
	return nil, status.Error(codes.NotFound, "Requested entity was not found.")
}

// taskData is what a task publishes.
func taskData(t *cloudtaskspb.Task) []byte {
	var body struct {
		Messages []struct {
			Data []byte `json:"data"`
		} `json:"messages"`
	}
	if json.Unmarshal(t.GetHttpRequest().GetBody(), &body) != nil || len(body.Messages) == 0 {
		return nil
	}
	return body.Messages[0].Data
}
