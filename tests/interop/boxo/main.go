// Command boxo is the independent reference that the interop tests hold chiral against.
//
//	boxo add [-profile NAME] PATH…    the CID that boxo's importer gives each path, one `CID<TAB>PATH` line each
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"

	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	chunker "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/exchange/offline"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	ipld "github.com/ipfs/go-ipld-format"
)

// hashOnly keeps DAG nodes and forgets leaves, so that a file of any size is hashed in little memory.
type hashOnly struct{ blockstore.Blockstore }

func (s hashOnly) Put(ctx context.Context, b blocks.Block) error {
	if b.Cid().Type() == cid.Raw {
		return nil
	}
	return s.Blockstore.Put(ctx, b)
}

func (s hashOnly) PutMany(ctx context.Context, bs []blocks.Block) error {
	for _, b := range bs {
		if err := s.Put(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

type importer struct {
	dag      ipld.DAGService
	chunkLen int64
	maxLinks int
}

func (im importer) file(path string) (ipld.Node, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	params := helpers.DagBuilderParams{
		Maxlinks:   im.maxLinks,
		RawLeaves:  true,
		CidBuilder: merkledag.V1CidPrefix(),
		Dagserv:    im.dag,
	}
	db, err := params.New(chunker.NewSizeSplitter(f, im.chunkLen))
	if err != nil {
		return nil, err
	}
	return balanced.Layout(db)
}

func (im importer) symlink(path string) (ipld.Node, error) {
	target, err := os.Readlink(path)
	if err != nil {
		return nil, err
	}
	data, err := unixfs.SymlinkData(target)
	if err != nil {
		return nil, err
	}
	node := merkledag.NodeWithData(data)
	return node, node.SetCidBuilder(merkledag.V1CidPrefix())
}

func (im importer) directory(ctx context.Context, path string) (ipld.Node, error) {
	dir, err := uio.NewDirectory(im.dag, uio.WithCidBuilder(merkledag.V1CidPrefix()))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Name() < entries[j].Name() })
	for _, entry := range entries {
		child, err := im.path(ctx, filepath.Join(path, entry.Name()))
		if err != nil {
			return nil, err
		}
		if err := dir.AddChild(ctx, entry.Name(), child); err != nil {
			return nil, err
		}
	}
	return dir.GetNode()
}

func (im importer) path(ctx context.Context, path string) (ipld.Node, error) {
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	var node ipld.Node
	switch {
	case info.Mode().IsRegular():
		node, err = im.file(path)
	case info.IsDir():
		node, err = im.directory(ctx, path)
	case info.Mode()&os.ModeSymlink != 0:
		node, err = im.symlink(path)
	default:
		err = fmt.Errorf("%s: neither file, directory nor symlink", path)
	}
	if err != nil {
		return nil, err
	}
	return node, im.dag.Add(ctx, node)
}

func add(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("add", flag.ExitOnError)
	profile := flags.String("profile", "default", "default or unixfs-v1-2025")
	if err := flags.Parse(args); err != nil {
		return err
	}
	store := hashOnly{blockstore.NewBlockstore(datastore.NewMapDatastore())}
	im := importer{
		dag:      merkledag.NewDAGService(blockservice.New(store, offline.Exchange(store))),
		chunkLen: 256 << 10,
		maxLinks: 174,
	}
	switch *profile {
	case "default":
	case "unixfs-v1-2025":
		im.chunkLen, im.maxLinks = 1<<20, 1024
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
		return errors.New("usage: boxo add [-profile NAME] PATH…")
	}
	switch args[0] {
	case "add":
		return add(ctx, args[1:], os.Stdout)
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
