package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/ipfs/boxo/blockstore"
	chunker "github.com/ipfs/boxo/chunker"
	"github.com/ipfs/boxo/ipld/merkledag"
	"github.com/ipfs/boxo/ipld/unixfs"
	"github.com/ipfs/boxo/ipld/unixfs/importer/balanced"
	"github.com/ipfs/boxo/ipld/unixfs/importer/helpers"
	"github.com/ipfs/boxo/ipld/unixfs/importer/trickle"
	uio "github.com/ipfs/boxo/ipld/unixfs/io"
	blocks "github.com/ipfs/go-block-format"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-cidutil"
	ipld "github.com/ipfs/go-ipld-format"
	mh "github.com/multiformats/go-multihash"
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

// shape says how a DAG is built; the zero value is that of `ipfs add --cid-version=1`.
type shape struct {
	Cidv0     bool   `json:"cidv0"`
	Trickle   bool   `json:"trickle"`
	PbLeaves  bool   `json:"pb_leaves"`
	Chunker   string `json:"chunker"`
	MaxLinks  int    `json:"max_links"`
	Hash      string `json:"hash"`
	Inline    int    `json:"inline"`
	KeepStats bool   `json:"keep_stats"`
	// Names that begin with a dot are left out of directories, as `ipfs add -r` does without -H.
	SkipHidden bool `json:"skip_hidden"`
}

type importer struct {
	dag ipld.DAGService
	shape
}

func (im importer) builder() (cid.Builder, error) {
	var prefix cid.Prefix
	if im.Cidv0 {
		prefix = merkledag.V0CidPrefix()
	} else {
		prefix = merkledag.V1CidPrefix()
	}
	if im.Hash != "" {
		code, known := mh.Names[im.Hash]
		if !known {
			return nil, fmt.Errorf("unknown hash function %q", im.Hash)
		}
		prefix.MhType, prefix.MhLength = code, -1
	}
	if im.Inline > 0 {
		return cidutil.InlineBuilder{Builder: prefix, Limit: im.Inline}, nil
	}
	return prefix, nil
}

func (im importer) file(path string, info os.FileInfo) (ipld.Node, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	builder, err := im.builder()
	if err != nil {
		return nil, err
	}
	params := helpers.DagBuilderParams{
		Maxlinks:   im.MaxLinks,
		RawLeaves:  !im.Cidv0 && !im.PbLeaves,
		CidBuilder: builder,
		Dagserv:    im.dag,
	}
	if params.Maxlinks == 0 {
		params.Maxlinks = helpers.DefaultLinksPerBlock
	}
	if im.KeepStats {
		params.FileMode, params.FileModTime = info.Mode(), info.ModTime()
	}
	chunks, err := chunker.FromString(f, im.Chunker)
	if err != nil {
		return nil, err
	}
	db, err := params.New(chunks)
	if err != nil {
		return nil, err
	}
	if im.Trickle {
		return trickle.Layout(db)
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
	builder, err := im.builder()
	if err != nil {
		return nil, err
	}
	node := merkledag.NodeWithData(data)
	return node, node.SetCidBuilder(builder)
}

func (im importer) directory(ctx context.Context, path string) (ipld.Node, error) {
	builder, err := im.builder()
	if err != nil {
		return nil, err
	}
	dir, err := uio.NewDirectory(im.dag, uio.WithCidBuilder(builder))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	sort.Slice(entries, func(i, j int) bool { return entries[i].Name() < entries[j].Name() })
	for _, entry := range entries {
		if im.SkipHidden && strings.HasPrefix(entry.Name(), ".") {
			continue
		}
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
		node, err = im.file(path, info)
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
