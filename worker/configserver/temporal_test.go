package configserver

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/require"
	enumspb "go.temporal.io/api/enums/v1"
	"go.temporal.io/api/operatorservice/v1"
	"google.golang.org/grpc"

	"drover/workflows/api"
)

// operator is a namespace with search attributes.
type operator struct {
	operatorservice.OperatorServiceClient
	have    map[string]enumspb.IndexedValueType
	refuses error
}

func (o *operator) ListSearchAttributes(context.Context, *operatorservice.ListSearchAttributesRequest, ...grpc.CallOption) (*operatorservice.ListSearchAttributesResponse, error) {
	return &operatorservice.ListSearchAttributesResponse{CustomAttributes: o.have}, nil
}

func (o *operator) AddSearchAttributes(_ context.Context, in *operatorservice.AddSearchAttributesRequest, _ ...grpc.CallOption) (*operatorservice.AddSearchAttributesResponse, error) {
	if o.refuses != nil {
		return nil, o.refuses
	}
	for name, k := range in.GetSearchAttributes() {
		o.have[name] = k
	}
	return &operatorservice.AddSearchAttributesResponse{}, nil
}

func TestSearchAttributes(t *testing.T) {
	o := &operator{have: map[string]enumspb.IndexedValueType{api.SearchState: enumspb.INDEXED_VALUE_TYPE_KEYWORD}}
	require.NoError(t, searchAttributes(t.Context(), o, "dr"))
	require.Len(t, o.have, len(api.SearchAttributes()))
	require.Equal(t, enumspb.INDEXED_VALUE_TYPE_KEYWORD_LIST, o.have[api.SearchPlans])

	o.refuses = errors.New("permission denied")
	require.NoError(t, searchAttributes(t.Context(), o, "dr"), "nothing is missing any more")
	delete(o.have, api.SearchPlans)
	delete(o.have, api.SearchSite)
	err := searchAttributes(t.Context(), o, "dr")
	require.ErrorIs(t, err, o.refuses)
	require.ErrorContains(t, err, "temporal operator search-attribute create --namespace dr --name DroverSite --type Keyword --name DroverPlans --type KeywordList")

	o.have[api.SearchHealth] = enumspb.INDEXED_VALUE_TYPE_TEXT
	require.ErrorContains(t, searchAttributes(t.Context(), o, "dr"), "DroverHealth")
}
