# The runtime of Workers, with a worker that runs scenarios against loopback. The certificate of
# the authority that it trusts is copied beside this file before it starts.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "conformance", worker = .worker),
    (name = "network", network = (
      allow = ["local", "public", "private"],
      tlsOptions = (trustedCertificates = [embed "authority.pem"]),
    )),
  ],
  sockets = [(name = "control", address = "127.0.0.1:0", http = (), service = "conformance")],
);

const worker :Workerd.Worker = (
  modules = [(name = "worker.js", esModule = embed "worker.js")],
  compatibilityDate = "2026-11-01",
  globalOutbound = "network",
);
