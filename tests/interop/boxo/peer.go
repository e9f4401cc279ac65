package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/ipfs/boxo/bitswap"
	"github.com/ipfs/boxo/bitswap/network/bsnet"
	"github.com/ipfs/boxo/blockservice"
	"github.com/ipfs/boxo/blockstore"
	"github.com/ipfs/boxo/files"
	"github.com/ipfs/boxo/gateway"
	"github.com/ipfs/boxo/ipld/merkledag"
	unixfile "github.com/ipfs/boxo/ipld/unixfs/file"
	"github.com/ipfs/go-cid"
	"github.com/ipfs/go-datastore"
	dsync "github.com/ipfs/go-datastore/sync"
	ipld "github.com/ipfs/go-ipld-format"
	"github.com/libp2p/go-libp2p"
	dht "github.com/libp2p/go-libp2p-kad-dht"
	"github.com/libp2p/go-libp2p/core/host"
	corepeer "github.com/libp2p/go-libp2p/core/peer"
)

// order is one line of the input; each is answered by one line of the output.
type order struct {
	Do    string `json:"do"`
	Path  string `json:"path"`
	Addr  string `json:"addr"`
	Cid   string `json:"cid"`
	Id    string `json:"id"`
	Shape shape  `json:"shape"`
}

type answer struct {
	Error   string   `json:"error,omitempty"`
	Cid     string   `json:"cid,omitempty"`
	Id      string   `json:"id,omitempty"`
	Addrs   []string `json:"addrs,omitempty"`
	Gateway string   `json:"gateway,omitempty"`
	Found   []string `json:"found,omitempty"`
	// First is when the first provider came.
	First   float64 `json:"first,omitempty"`
	Seconds float64 `json:"seconds"`
}

type node struct {
	host    host.Host
	dht     *dht.IpfsDHT
	dag     ipld.DAGService
	gateway string
}

func start(ctx context.Context, listen []string) (*node, error) {
	h, err := libp2p.New(libp2p.ListenAddrStrings(listen...), libp2p.DisableRelay())
	if err != nil {
		return nil, err
	}
	// Loopback addresses stay in the records: nothing filters them here, unlike in the dual DHT.
	kad, err := dht.New(h, dht.Mode(dht.ModeServer), dht.ProtocolExtension("/lan"), dht.BootstrapPeers())
	if err != nil {
		return nil, err
	}
	store := blockstore.NewIdStore(blockstore.NewBlockstore(dsync.MutexWrap(datastore.NewMapDatastore())))
	network := bsnet.NewFromIpfsHost(h)
	exchange := bitswap.New(ctx, network, kad, store)
	network.Start(exchange)
	service := blockservice.New(store, exchange)
	url, err := serveGateway(service)
	if err != nil {
		return nil, err
	}
	return &node{host: h, dht: kad, dag: merkledag.NewDAGService(service), gateway: url}, nil
}

func serveGateway(service blockservice.BlockService) (string, error) {
	backend, err := gateway.NewBlocksBackend(service)
	if err != nil {
		return "", err
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	config := gateway.Config{DeserializedResponses: true, RetrievalTimeout: 10 * time.Second}
	go http.Serve(listener, gateway.NewHandler(config, backend))
	return "http://" + listener.Addr().String(), nil
}

func (n *node) about() answer {
	var addrs []string
	for _, addr := range n.host.Addrs() {
		addrs = append(addrs, fmt.Sprintf("%s/p2p/%s", addr, n.host.ID()))
	}
	return answer{Id: n.host.ID().String(), Addrs: addrs, Gateway: n.gateway}
}

func (n *node) add(ctx context.Context, o order) (answer, error) {
	root, err := importer{dag: n.dag, shape: o.Shape}.path(ctx, o.Path)
	if err != nil {
		return answer{}, err
	}
	return answer{Cid: root.Cid().String()}, nil
}

// get writes the DAG below a CID to a path. All of it is fetched first: one small file after the other takes a round
// of waiting each.
func (n *node) get(ctx context.Context, o order) (answer, error) {
	id, err := cid.Decode(o.Cid)
	if err != nil {
		return answer{}, err
	}
	if err := merkledag.FetchGraph(ctx, id, n.dag, merkledag.Concurrent()); err != nil {
		return answer{}, err
	}
	root, err := n.dag.Get(ctx, id)
	if err != nil {
		return answer{}, err
	}
	content, err := unixfile.NewUnixfsFile(ctx, n.dag, root)
	if err != nil {
		return answer{}, err
	}
	return answer{}, files.WriteTo(content, o.Path)
}

func (n *node) connect(ctx context.Context, o order) (answer, error) {
	info, err := corepeer.AddrInfoFromString(o.Addr)
	if err != nil {
		return answer{}, err
	}
	return answer{}, n.host.Connect(ctx, *info)
}

func (n *node) provide(ctx context.Context, o order) (answer, error) {
	id, err := cid.Decode(o.Cid)
	if err != nil {
		return answer{}, err
	}
	if n.dht.RoutingTable().Size() == 0 {
		return answer{}, errors.New("nobody is in the routing table yet")
	}
	return answer{}, n.dht.Provide(ctx, id, true)
}

func (n *node) find(ctx context.Context, o order) (answer, error) {
	id, err := cid.Decode(o.Cid)
	if err != nil {
		return answer{}, err
	}
	var a answer
	began := time.Now()
	for info := range n.dht.FindProvidersAsync(ctx, id, 20) {
		if len(a.Found) == 0 {
			a.First = time.Since(began).Seconds()
		}
		a.Found = append(a.Found, info.ID.String())
	}
	return a, nil
}

// disconnect closes all connections to a peer and forgets where it is.
func (n *node) disconnect(o order) (answer, error) {
	id, err := corepeer.Decode(o.Id)
	if err != nil {
		return answer{}, err
	}
	err = n.host.Network().ClosePeer(id)
	n.host.Peerstore().ClearAddrs(id)
	return answer{}, err
}

// table answers with the peers of the routing table.
func (n *node) table() answer {
	var found []string
	for _, id := range n.dht.RoutingTable().ListPeers() {
		found = append(found, id.String())
	}
	return answer{Found: found}
}

// Everything is done within this time or is an error, so that no test waits for ever.
const patience = 3 * time.Minute

func (n *node) obey(ctx context.Context, o order) answer {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	began := time.Now()
	var a answer
	var err error
	switch o.Do {
	case "about":
		a = n.about()
	case "add":
		a, err = n.add(ctx, o)
	case "get":
		a, err = n.get(ctx, o)
	case "connect":
		a, err = n.connect(ctx, o)
	case "provide":
		a, err = n.provide(ctx, o)
	case "find":
		a, err = n.find(ctx, o)
	case "disconnect":
		a, err = n.disconnect(o)
	case "table":
		a = n.table()
	default:
		err = fmt.Errorf("unknown order %q", o.Do)
	}
	if err != nil {
		a.Error = err.Error()
	}
	a.Seconds = time.Since(began).Seconds()
	return a
}

func peerMain(ctx context.Context, args []string, in io.Reader, out io.Writer) error {
	flags := flag.NewFlagSet("peer", flag.ExitOnError)
	listen := flags.String("listen", "/ip4/127.0.0.1/tcp/0", "addresses to listen on, with commas between them")
	if err := flags.Parse(args); err != nil {
		return err
	}
	n, err := start(ctx, strings.Split(*listen, ","))
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	answers := json.NewEncoder(out)
	for lines.Scan() {
		var o order
		if err := json.Unmarshal(lines.Bytes(), &o); err != nil {
			return err
		}
		if err := answers.Encode(n.obey(ctx, o)); err != nil {
			return err
		}
	}
	return errors.Join(lines.Err(), n.dht.Close(), n.host.Close())
}
