package main

import (
	"context"
	"fmt"

	"github.com/pushpool/pushpool/scripts/pushpool/local"
)

// The commands of this file are scripts/test's: what it would otherwise do a second time in shell.

type findPythonCommand struct{}

// Run prints the path.
func (c *findPythonCommand) Run(ctx context.Context) error {
	python, err := local.FindPython(ctx, "")
	if err == nil {
		fmt.Println(python)
	}
	return err
}

type installPrefectCommand struct {
	Major int `arg:"" enum:"2,3"`
}

// Run prints the folder, on the last line.
func (c *installPrefectCommand) Run(ctx context.Context) error {
	root, err := local.Root()
	if err != nil {
		return err
	}
	release := local.Prefect3
	if c.Major == 2 {
		release = local.Prefect2
	}
	dir, err := local.Venv(ctx, root, release, "", say)
	if err == nil {
		fmt.Println(dir)
	}
	return err
}

type freePortCommand struct{}

// Run prints the port.
func (c *freePortCommand) Run(ctx context.Context) error {
	port, err := local.FreePort(ctx)
	if err == nil {
		fmt.Println(port)
	}
	return err
}
