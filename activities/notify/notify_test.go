package notify

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"drover/workflows/api"
)

func TestSend(t *testing.T) {
	n := api.Notification{Subject: "db-1 needs a resync", Problem: api.Problem{Code: api.CodeSessionLost, Cause: "no session for 5 s"}}
	var log bytes.Buffer
	var got api.Notification
	status := http.StatusNoContent
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = json.NewDecoder(r.Body).Decode(&got)
		w.WriteHeader(status)
	}))
	defer server.Close()
	logger := slog.New(slog.NewJSONHandler(&log, nil))

	silent, err := New("", logger)
	require.NoError(t, err)
	require.NoError(t, silent.Send(t.Context(), n))
	require.Contains(t, log.String(), "DRV-3001")
	require.Zero(t, got)

	a, err := New(server.URL+"/?key=hunter2", logger)
	require.NoError(t, err)
	require.NoError(t, a.Send(t.Context(), n))
	require.Equal(t, n, got)
	status = http.StatusBadGateway
	require.ErrorContains(t, a.Send(t.Context(), n), "502")
	server.Close()
	err = a.Send(t.Context(), n)
	require.Error(t, err)
	require.NotContains(t, err.Error()+log.String(), "hunter2")

	_, err = New("ftp://x", logger)
	require.Error(t, err)
}
