package api

import "strings"

// Search attributes: by them the Temporal UI filters machines, their runbooks and
// the runs of plans.
const (
	SearchState   = "DroverState"
	SearchHealth  = "DroverHealth"
	SearchPolicy  = "DroverPolicy"
	SearchMachine = "DroverMachine" // the VM's name; also of the machine's runbooks
	SearchSite    = "DroverSite"
	SearchPlan    = "DroverPlan"  // of a run of a plan
	SearchPlans   = "DroverPlans" // of a machine: the plans that name it
)

// MemoSummary is the key of a machine's memo: one line for people.
const MemoSummary = "summary"

// SearchAttribute is one that the namespace must know before a worker starts: a
// workflow that sets an unknown one gets no further.
type SearchAttribute struct {
	Name string
	List bool // KeywordList; else Keyword
}

// Kind is the attribute's type by Temporal's name.
func (a SearchAttribute) Kind() string {
	if a.List {
		return "KeywordList"
	}
	return "Keyword"
}

// SearchAttributes lists all that the workflows set.
func SearchAttributes() []SearchAttribute {
	return []SearchAttribute{
		{Name: SearchState}, {Name: SearchHealth}, {Name: SearchPolicy}, {Name: SearchMachine},
		{Name: SearchSite}, {Name: SearchPlan}, {Name: SearchPlans, List: true},
	}
}

// SearchAttributesCommand gives the command with which an administrator of Temporal
// registers the attributes.
func SearchAttributesCommand(namespace string, missing []SearchAttribute) string {
	var b strings.Builder
	b.WriteString("temporal operator search-attribute create --namespace " + namespace)
	for _, a := range missing {
		b.WriteString(" --name " + a.Name + " --type " + a.Kind())
	}
	return b.String()
}
