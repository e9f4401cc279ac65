// A Helia node that takes orders on its standard input, one JSON object in a line, each answered by one line.
import fs from 'node:fs'
import path from 'node:path'
import readline from 'node:readline'
import { quic } from '@chainsafe/libp2p-quic'
import { withBitswap } from '@helia/bitswap'
import { withLibp2pLight } from '@helia/libp2p'
import { unixfs } from '@helia/unixfs'
import { identify } from '@libp2p/identify'
import { noise } from '@libp2p/noise'
import { tcp } from '@libp2p/tcp'
import { yamux } from '@libp2p/yamux'
import { multiaddr } from '@multiformats/multiaddr'
import { MemoryBlockstore } from 'blockstore-core'
import { createHeliaLight } from 'helia'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced, trickle } from 'ipfs-unixfs-importer/layout'
import { CID } from 'multiformats/cid'

// Everything is done within this time or is an error, so that no test waits for ever.
const PATIENCE_MS = 180_000
// Files of a directory that are fetched at a time: one after the other takes a round of waiting each.
const AT_ONCE = 64

const listen = (process.argv[2] ?? '/ip4/127.0.0.1/tcp/0').split(',')
const helia = withBitswap(withLibp2pLight(createHeliaLight({ blockstore: new MemoryBlockstore() }), {
  addresses: { listen },
  transports: [tcp(), ...(listen.some(a => a.includes('quic')) ? [quic()] : [])],
  connectionEncrypters: [noise()],
  streamMuxers: [yamux()],
  services: { identify: identify() }
}))
await helia.start()
const files = unixfs(helia)

// The shape of `ipfs add --cid-version=1` unless something else is asked for.
function options (shape = {}) {
  return {
    cidVersion: shape.cidv0 ? 0 : 1,
    rawLeaves: !(shape.cidv0 || shape.pb_leaves),
    chunker: fixedSize({ chunkSize: shape.chunker ? Number(shape.chunker.replace('size-', '')) : 262144 }),
    layout: shape.trickle ? trickle({ maxChildrenPerNode: 174 }) : balanced({ maxChildrenPerNode: 174 })
  }
}

async function * walk (root, below = '') {
  for (const entry of fs.readdirSync(path.join(root, below), { withFileTypes: true })) {
    const name = path.posix.join(below, entry.name)
    if (entry.isDirectory()) {
      yield { path: name }
      yield * walk(root, name)
    } else {
      yield { path: name, content: fs.createReadStream(path.join(root, name)) }
    }
  }
}

async function add ({ path: source, shape }) {
  if (!fs.statSync(source).isDirectory()) {
    return { cid: (await files.addByteStream(fs.createReadStream(source), options(shape))).toString() }
  }
  let last
  for await (const entry of files.addAll(walk(source), { ...options(shape), wrapWithDirectory: true })) last = entry
  return { cid: last.cid.toString() }
}

async function write (cid, target, signal) {
  const { type } = await files.stat(cid, { signal })
  if (type !== 'directory') {
    const out = fs.createWriteStream(target)
    for await (const bytes of files.cat(cid, { signal })) {
      if (!out.write(bytes)) await new Promise(resolve => out.once('drain', resolve))
    }
    await new Promise(resolve => out.end(resolve))
    return
  }
  fs.mkdirSync(target)
  const entries = []
  for await (const entry of files.ls(cid, { signal })) entries.push(entry)
  const next = async () => {
    for (let entry = entries.pop(); entry != null; entry = entries.pop()) {
      await write(entry.cid, path.join(target, entry.name), signal)
    }
  }
  await Promise.all(Array.from({ length: AT_ONCE }, next))
}

const orders = {
  about: async () => ({ id: helia.libp2p.peerId.toString(), addrs: helia.libp2p.getMultiaddrs().map(String) }),
  add,
  get: async ({ cid, path: target }) => { await write(CID.parse(cid), target, AbortSignal.timeout(PATIENCE_MS)); return {} },
  connect: async ({ addr }) => { await helia.libp2p.dial(multiaddr(addr), { signal: AbortSignal.timeout(PATIENCE_MS) }); return {} }
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const order = JSON.parse(line)
  const began = performance.now()
  let answer
  try {
    answer = await orders[order.do](order)
  } catch (error) {
    answer = { error: `${error?.name}: ${error?.message}` }
  }
  answer.seconds = (performance.now() - began) / 1000
  console.log(JSON.stringify(answer))
}
await helia.stop()
process.exit(0)
