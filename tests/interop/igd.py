#!/usr/bin/env python3
"""A router's UPnP service, as far as the forwarding of ports goes.

    igd.py INSIDE_ADDRESS OUTSIDE_ADDRESS OUTSIDE_LINK

Answers searches on the inside, says what its address outside is, and forwards ports with nft in the namespace it runs in:
the table `ip nat` with a chain `pre` and the chain `forward` of the table `ip filter` have to be there.
"""
import http.server
import re
import socket
import socketserver
import struct
import subprocess
import sys
import threading

INSIDE, OUTSIDE, LINK = sys.argv[1:]
PORT = 5000
SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
ROOT = f"""<?xml version="1.0"?><root><device><serviceList><service><serviceType>{SERVICE}</serviceType>
<SCPDURL>/scpd.xml</SCPDURL><controlURL>/control</controlURL></service></serviceList></device></root>"""
ARGUMENTS = ["RemoteHost", "ExternalPort", "Protocol", "InternalPort", "InternalClient", "Enabled", "PortMappingDescription", "LeaseDuration"]
ACTIONS = {"AddPortMapping": ARGUMENTS, "DeletePortMapping": ARGUMENTS[:3]}
SCPD = '<?xml version="1.0"?><scpd><actionList>' + "".join(
    f"<action><name>{name}</name><argumentList>"
    + "".join(f"<argument><name>New{argument}</name><direction>in</direction></argument>" for argument in arguments)
    + "</argumentList></action>" for name, arguments in ACTIONS.items()) + "</actionList></scpd>"


def search():
    """Says where the service is to whoever looks for a router."""
    group = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    group.bind(("", 1900))
    member = struct.pack("=4s4s", socket.inet_aton("239.255.255.250"), socket.inet_aton(INSIDE))
    group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    while True:
        packet, asker = group.recvfrom(2048)
        if packet.startswith(b"M-SEARCH"):
            group.sendto(f"HTTP/1.1 200 OK\r\nLOCATION: http://{INSIDE}:{PORT}/root.xml\r\n\r\n".encode(), asker)


def forward(body):
    external, internal, client, protocol = (
        re.search(f"<New{name}>([^<]*)<", body)[1] for name in ("ExternalPort", "InternalPort", "InternalClient", "Protocol"))
    rule = f"add rule ip nat pre iifname {LINK} {protocol.lower()} dport {int(external)} dnat to {client}:{int(internal)}"
    subprocess.run(["nft", *rule.split()], check=True)
    subprocess.run(["nft", *"insert rule ip filter forward ct status dnat accept".split()], check=True)
    print("forwarded", protocol, external, flush=True)


class Service(http.server.BaseHTTPRequestHandler):
    def answer(self, text):
        self.send_response(200)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        self.answer({"/root.xml": ROOT, "/scpd.xml": SCPD}[self.path])

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        action = self.headers["SOAPAction"].strip('"').partition("#")[2]
        if action == "AddPortMapping":
            forward(body)
        value = f"<NewExternalIPAddress>{OUTSIDE}</NewExternalIPAddress>" if action == "GetExternalIPAddress" else ""
        self.answer(f"""<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>
<u:{action}Response xmlns:u="{SERVICE}">{value}</u:{action}Response></s:Body></s:Envelope>""")


threading.Thread(target=search, daemon=True).start()
# Not http.server's own server, which asks the DNS for its name first.
socketserver.ThreadingTCPServer((INSIDE, PORT), Service).serve_forever()
