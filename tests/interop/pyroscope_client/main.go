// Every call with the client that Grafana's own data source is built on: pyroscope_client BASE DUMP_ID PPROF.
// One JSON document on stdout: the reply of each call, the codes of the calls that must fail, and what the
// reference reader of pprof makes of the merged profile and of the file PPROF.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"connectrpc.com/connect"
	"github.com/google/pprof/profile"
	profilev1 "github.com/grafana/pyroscope/api/gen/proto/go/google/v1"
	querierv1 "github.com/grafana/pyroscope/api/gen/proto/go/querier/v1"
	"github.com/grafana/pyroscope/api/gen/proto/go/querier/v1/querierv1connect"
	typesv1 "github.com/grafana/pyroscope/api/gen/proto/go/types/v1"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

const (
	cpu   = "process_cpu:cpu:nanoseconds:cpu:nanoseconds"
	dumps = "incident:dumps:count:incident:count"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// call makes one call and gives its reply as JSON.
func call[Q, A any](do func(context.Context, *connect.Request[Q]) (*connect.Response[A], error), request *Q) (*A, json.RawMessage) {
	reply, err := do(context.Background(), connect.NewRequest(request))
	must(err)
	text, err := protojson.Marshal(any(reply.Msg).(proto.Message))
	must(err)
	return reply.Msg, text
}

// described is what the reference reader of pprof says of a profile: its sample types, samples and total.
func described(data []byte) map[string]any {
	found, err := profile.ParseData(data)
	must(err)
	must(found.CheckValid())
	types := []string{}
	for _, each := range found.SampleType {
		types = append(types, each.Type+"/"+each.Unit)
	}
	total := int64(0)
	for _, sample := range found.Sample {
		total += sample.Value[len(sample.Value)-1]
	}
	return map[string]any{"types": types, "samples": len(found.Sample), "functions": len(found.Function), "total": total}
}

func main() {
	base, dump := os.Args[1], os.Args[2]
	selector := fmt.Sprintf(`{dump_id=%q}`, dump)
	found := map[string]any{}
	for name, option := range map[string]connect.ClientOption{"binary": connect.WithClientOptions(), "json": connect.WithProtoJSON()} {
		client := querierv1connect.NewQuerierServiceClient(http.DefaultClient, base, option)
		replies := map[string]any{}
		side := &querierv1.SelectMergeStacktracesRequest{ProfileTypeID: cpu, LabelSelector: selector, Start: 1, End: 1 << 42}
		_, replies["ProfileTypes"] = call(client.ProfileTypes, &querierv1.ProfileTypesRequest{Start: 1000, End: 4000})
		_, replies["LabelNames"] = call(client.LabelNames, &typesv1.LabelNamesRequest{})
		_, replies["LabelValues"] = call(client.LabelValues, &typesv1.LabelValuesRequest{Name: "dump_id", Matchers: []string{"{}"}})
		_, replies["Series"] = call(client.Series, &querierv1.SeriesRequest{LabelNames: []string{"service_name"}})
		_, replies["SelectSeries"] = call(client.SelectSeries, &querierv1.SelectSeriesRequest{ProfileTypeID: dumps, GroupBy: []string{"dump_id"}, Step: 15})
		_, replies["SelectMergeStacktraces"] = call(client.SelectMergeStacktraces, side)
		_, replies["SelectMergeSpanProfile"] = call(client.SelectMergeSpanProfile, &querierv1.SelectMergeSpanProfileRequest{ProfileTypeID: cpu, LabelSelector: selector})
		_, replies["Diff"] = call(client.Diff, &querierv1.DiffRequest{Left: side, Right: side})
		_, replies["GetProfileStats"] = call(client.GetProfileStats, &typesv1.GetProfileStatsRequest{})
		var merged *profilev1.Profile
		merged, _ = call(client.SelectMergeProfile, &querierv1.SelectMergeProfileRequest{ProfileTypeID: cpu, LabelSelector: selector})
		data, err := proto.Marshal(merged)
		must(err)
		replies["SelectMergeProfile"] = described(data)
		_, err = client.SelectSeries(context.Background(), connect.NewRequest(&querierv1.SelectSeriesRequest{ProfileTypeID: "nope"}))
		replies["unknown type"] = connect.CodeOf(err).String()
		_, err = client.SelectMergeStacktraces(context.Background(), connect.NewRequest(&querierv1.SelectMergeStacktracesRequest{ProfileTypeID: cpu, Format: querierv1.ProfileFormat_PROFILE_FORMAT_DOT}))
		replies["unknown format"] = connect.CodeOf(err).String()
		_, err = client.SelectHeatmap(context.Background(), connect.NewRequest(&querierv1.SelectHeatmapRequest{ProfileTypeID: cpu}))
		replies["unknown method"] = connect.CodeOf(err).String()
		found[name] = replies
	}
	file, err := os.ReadFile(os.Args[3])
	must(err)
	found["file"] = described(file)
	out := bytes.Buffer{}
	must(json.NewEncoder(&out).Encode(found))
	os.Stdout.Write(out.Bytes())
}
