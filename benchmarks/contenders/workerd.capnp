# The runtime of Workers. The certificate of the authority it trusts is put beside this file.
using Workerd = import "/workerd/workerd.capnp";

const config :Workerd.Config = (
  services = [
    (name = "benchmarks", worker = .worker),
    (name = "network", network = (
      allow = ["local", "public", "private"],
      tlsOptions = (trustedCertificates = [embed "authority.pem"]),
    )),
  ],
  sockets = [(name = "control", address = "127.0.0.1:0", http = (), service = "benchmarks")],
);

const worker :Workerd.Worker = (
  modules = [
    (name = "worker.js", esModule = embed "worker.js"),
    (name = "works.mjs", esModule = embed "works.mjs"),
  ],
  compatibilityDate = "2026-11-01",
  globalOutbound = "network",
);
