// nonewprivs says whose rights it has; critest runs it with the set-user-ID bit.
package main

import (
	"fmt"
	"os"
)

func main() { fmt.Printf("Effective uid: %d\n", os.Geteuid()) }
