// Command boxo is the independent reference that the interop tests hold chiral against.
//
//	boxo add [-profile NAME] PATH…    the CID that boxo's importer gives each path, one `CID<TAB>PATH` line each
//	boxo peer [-listen MULTIADDR,…]   a node that takes orders on its standard input (see peer.go)
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/go-datastore"
)

func add(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("add", flag.ExitOnError)
	profile := flags.String("profile", "default", "default or unixfs-v1-2025")
	hidden := flags.Bool("hidden", true, "publish hidden files in directories, too")
	if err := flags.Parse(args); err != nil {
		return err
	}
	store := hashOnly{blockstore.NewBlockstore(datastore.NewMapDatastore())}
	im := importer{dag: merkledag.NewDAGService(blockservice.New(store, offline.Exchange(store)))}
	im.SkipHidden = !*hidden
	switch *profile {
	case "default":
	case "unixfs-v1-2025":
		im.Chunker, im.MaxLinks = "size-1048576", 1024
	default:
		return fmt.Errorf("unknown profile %q", *profile)
	}
	for _, path := range flags.Args() {
		node, err := im.path(ctx, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s\t%s\n", node.Cid(), path)
	}
	return nil
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("usage: boxo add [-profile NAME] PATH… | boxo peer [-listen MULTIADDR,…]")
	}
	switch args[0] {
	case "add":
		return add(ctx, args[1:], os.Stdout)
	case "peer":
		return peerMain(ctx, args[1:], os.Stdin, os.Stdout)
	default:
		return fmt.Errorf("unknown command %q", args[0])
	}
}

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "boxo:", err)
		os.Exit(1)
	}
}
