package azstorage

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
)

const (
	sasLook = 10 * time.Second // between two looks at the file
	sasMax  = 4 << 10          // bytes of a SAS
)

// sasPolicy signs requests with the SAS in a file, which somebody replaces before
// it expires. It is added here, so that no client and no error holds it.
type sasPolicy struct {
	file string

	mu     sync.Mutex
	value  string
	looked time.Time
}

func (p *sasPolicy) Do(req *policy.Request) (*http.Response, error) {
	sas, err := p.read(time.Now())
	if err != nil {
		return nil, err
	}
	u := req.Raw().URL
	plain := u.RawQuery
	if u.RawQuery != "" {
		u.RawQuery += "&"
	}
	u.RawQuery += sas
	resp, err := req.Next()
	u.RawQuery = plain // a repetition adds it anew, and nobody else sees it
	return resp, err
}

func (p *sasPolicy) read(now time.Time) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.value != "" && now.Sub(p.looked) < sasLook {
		return p.value, nil
	}
	b, err := os.ReadFile(p.file)
	if err != nil {
		return "", fmt.Errorf("read the SAS: %w", err)
	}
	sas := strings.TrimPrefix(strings.TrimSpace(string(b)), "?")
	if len(b) > sasMax || !strings.Contains(sas, "sig=") || strings.ContainsAny(sas, " \r\n") {
		return "", fmt.Errorf("read the SAS: %s holds no SAS (a query with sig=)", p.file)
	}
	p.value, p.looked = sas, now
	return sas, nil
}
