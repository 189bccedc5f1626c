// kstatus reads a JSON list of objects from stdin and prints, as JSON, what Flux and Helm would take each of them for.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type computed struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func run() error {
	var objects []json.RawMessage
	if err := json.NewDecoder(os.Stdin).Decode(&objects); err != nil {
		return err
	}
	found := make([]computed, 0, len(objects))
	for _, object := range objects {
		read := &unstructured.Unstructured{}
		// As clients read it: whole numbers stay whole.
		if err := read.UnmarshalJSON(object); err != nil {
			return err
		}
		result, err := status.Compute(read)
		if err != nil {
			return err
		}
		found = append(found, computed{Status: result.Status.String(), Message: result.Message})
	}
	return json.NewEncoder(os.Stdout).Encode(found)
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "kstatus:", err)
		os.Exit(1)
	}
}
