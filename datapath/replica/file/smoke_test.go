package file

import "testing"

func TestOpenMakesAnEmptyStore(t *testing.T) {
	s, err := Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ids, err := s.Machines(t.Context())
	if err != nil || len(ids) != 0 {
		t.Fatalf("machines %v, %v", ids, err)
	}
}
