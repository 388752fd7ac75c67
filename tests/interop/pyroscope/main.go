// A push target made of Pyroscope's own generated service and Google's own reader of profiles: it listens on the port of
// its only argument, takes what a client pushes as PusherService, and gives it back as JSON at /pushed.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"os"
	"sync"

	"connectrpc.com/connect"
	"github.com/google/pprof/profile"
	pushv1 "github.com/grafana/pyroscope/api/gen/proto/go/push/v1"
	"github.com/grafana/pyroscope/api/gen/proto/go/push/v1/pushv1connect"
)

type pushed struct {
	Tenant  string
	ID      string
	Labels  map[string]string
	Types   []string
	Samples int
	Totals  []int64
}

type pusher struct {
	lock  sync.Mutex
	found []pushed
}

func (p *pusher) Push(_ context.Context, request *connect.Request[pushv1.PushRequest]) (*connect.Response[pushv1.PushResponse], error) {
	p.lock.Lock()
	defer p.lock.Unlock()
	for _, series := range request.Msg.Series {
		labels := map[string]string{}
		for _, label := range series.Labels {
			labels[label.Name] = label.Value
		}
		if labels["__name__"] == "" || labels["service_name"] == "" {
			return nil, connect.NewError(connect.CodeInvalidArgument, errors.New("a series has no name or no service"))
		}
		for _, sample := range series.Samples {
			read, err := profile.Parse(bytes.NewReader(sample.RawProfile))
			if err == nil {
				err = read.CheckValid()
			}
			if err != nil {
				return nil, connect.NewError(connect.CodeInvalidArgument, err)
			}
			one := pushed{Tenant: request.Header().Get("X-Scope-OrgID"), ID: sample.ID, Labels: labels, Samples: len(read.Sample)}
			for number, kind := range read.SampleType {
				one.Types = append(one.Types, kind.Type+"/"+kind.Unit)
				total := int64(0)
				for _, each := range read.Sample {
					total += each.Value[number]
				}
				one.Totals = append(one.Totals, total)
			}
			p.found = append(p.found, one)
		}
	}
	return connect.NewResponse(&pushv1.PushResponse{}), nil
}

func main() {
	taken := &pusher{}
	mux := http.NewServeMux()
	mux.Handle(pushv1connect.NewPusherServiceHandler(taken))
	mux.HandleFunc("/pushed", func(answer http.ResponseWriter, _ *http.Request) {
		taken.lock.Lock()
		defer taken.lock.Unlock()
		_ = json.NewEncoder(answer).Encode(taken.found)
	})
	log.Fatal(http.ListenAndServe("127.0.0.1:"+os.Args[1], mux))
}
