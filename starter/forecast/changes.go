package forecast

import (
	"encoding/json"
	"fmt"
	"slices"

	"drover/workflows/api"
)

// Changes gives what is another way in a plan than it was, for people: one line each, by
// its place in the plan. Groups, machines and actions are known by their names.
func Changes(was, is api.Plan) ([]string, error) {
	a, err := tree(was)
	if err != nil {
		return nil, err
	}
	b, err := tree(is)
	if err != nil {
		return nil, err
	}
	return compare("", a, b), nil
}

func tree(p api.Plan) (out any, err error) {
	b, err := json.Marshal(p)
	if err == nil {
		err = json.Unmarshal(b, &out)
	}
	return out, err
}

func compare(path string, a, b any) []string {
	if x, ok := a.(map[string]any); ok {
		if y, ok := b.(map[string]any); ok {
			return compareFields(path, x, y)
		}
	}
	x, y := named(a), named(b)
	if x != nil && y != nil {
		return compareLists(path, x, y)
	}
	if text(a) == text(b) {
		return nil
	}
	return []string{fmt.Sprintf("%s: was %s, is %s", path, text(a), text(b))}
}

func compareFields(path string, a, b map[string]any) (out []string) {
	keys := map[string]bool{}
	for k := range a {
		keys[k] = true
	}
	for k := range b {
		keys[k] = true
	}
	sorted := make([]string, 0, len(keys))
	for k := range keys {
		sorted = append(sorted, k)
	}
	slices.Sort(sorted)
	for _, k := range sorted {
		at := k
		if path != "" {
			at = path + "." + k
		}
		out = append(out, compare(at, orEmpty(a[k], b[k]), orEmpty(b[k], a[k]))...)
	}
	return out
}

// orEmpty gives an empty list where there is none and the other side has one.
func orEmpty(v, other any) any {
	if _, list := other.([]any); list && v == nil {
		return []any{}
	}
	return v
}

// member is an element of a list, with its name.
type member struct {
	name  string
	value any
}

// named gives a list's elements when all of them have names; nil when it is no such list.
func named(v any) []member {
	list, ok := v.([]any)
	if !ok {
		return nil
	}
	out := []member{}
	for _, e := range list {
		fields, ok := e.(map[string]any)
		name, has := fields["name"].(string)
		if !ok || !has {
			return nil
		}
		out = append(out, member{name, e})
	}
	return out
}

func find(list []member, name string) (any, bool) {
	i := slices.IndexFunc(list, func(m member) bool { return m.name == name })
	if i < 0 {
		return nil, false
	}
	return list[i].value, true
}

func compareLists(path string, a, b []member) (out []string) {
	var common []string
	for _, m := range a {
		if _, there := find(b, m.name); there {
			common = append(common, m.name)
		} else {
			out = append(out, fmt.Sprintf("%s: %s is gone", path, m.name))
		}
	}
	for _, m := range b {
		old, there := find(a, m.name)
		if !there {
			out = append(out, fmt.Sprintf("%s: %s is new", path, m.name))
			continue
		}
		if len(common) > 0 && common[0] != m.name {
			out = append(out, fmt.Sprintf("%s: another order, from %s on", path, m.name))
			common = slices.DeleteFunc(common, func(s string) bool { return s == m.name })
		} else {
			common = common[min(1, len(common)):]
		}
		out = append(out, compare(path+"["+m.name+"]", old, m.value)...)
	}
	return out
}

func text(v any) string {
	if v == nil {
		return "nothing"
	}
	b, err := json.Marshal(v)
	if err != nil {
		return fmt.Sprint(v)
	}
	return string(b)
}
