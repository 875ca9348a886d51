package arch

import (
	"go/ast"
	"strconv"
)

// literal gives the text of a string constant.
func literal(decl any, name string) (string, bool) {
	spec, ok := decl.(*ast.ValueSpec)
	if !ok {
		return "", false
	}
	for i, n := range spec.Names {
		if n.Name != name || i >= len(spec.Values) {
			continue
		}
		if lit, ok := spec.Values[i].(*ast.BasicLit); ok {
			text, err := strconv.Unquote(lit.Value)
			return text, err == nil
		}
	}
	return "", false
}
