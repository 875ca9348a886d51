package api

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestValidateTarget(t *testing.T) {
	for _, c := range []struct {
		target Target
		wrong  string
	}{
		{Target{}, ""},
		{Target{Size: "a", FallBackSizes: []string{"b"}, Address: "10.0.0.9", AddressPolicy: AddressNext, Zone: "1", Health: "tcp:22"}, ""},
		{Target{AvailabilitySet: "set", Health: HealthAgent}, ""},
		{Target{FallBackSizes: []string{"b"}}, "fallBackSizes"},
		{Target{AddressPolicy: "any"}, "addressPolicy"},
		{Target{Zone: "1", AvailabilitySet: "set"}, "zone"},
		{Target{Health: "tcp"}, "health"},
		{Target{Health: "tcp:0"}, "health"},
		{Target{Health: "tcp:99999"}, "health"},
		{Target{Health: "agent:1"}, "health"},
		{Target{Health: "hope"}, "health"},
	} {
		wrong := ValidateTarget(c.target)
		if c.wrong == "" {
			require.Empty(t, wrong, "%+v", c.target)
			continue
		}
		require.Len(t, wrong, 1, "%+v", c.target)
		require.Equal(t, c.wrong, wrong[0].Path)
	}
}
