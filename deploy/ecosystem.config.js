// pm2 start deploy/ecosystem.config.js --only quasar-miner
// Every role reads .env and config.toml of the checkout; PM2_CONFIG_FILE names another settings file and
// PM2_CWD another folder.
const path = require("node:path");

const root = path.resolve(__dirname, "..");

function role(name) {
  const config = process.env.PM2_CONFIG_FILE;
  return {
    name: `quasar-${name}`,
    script: path.join(root, ".venv", "bin", "quasar-node"),
    interpreter: "none",
    args: ["--role", name, ...(config ? ["--config", config] : [])],
    cwd: process.env.PM2_CWD || root,
    autorestart: true,
    // 2: command line; 77: not registered or no permit; 78: settings or wallet. Not 0: to pm2 a process that
    // was killed (by the kernel, for memory) has ended with 0, and would stay down.
    stop_exit_codes: [2, 77, 78],
    // Waits longer from restart to restart, up to 15 seconds, and begins anew after a while without one.
    exp_backoff_restart_delay: 1000,
    // Above [node] drain_s and the five seconds after which the node ends itself.
    kill_timeout: 45000,
    time: true,
  };
}

module.exports = { apps: ["miner", "validator", "api", "inference"].map(role) };
