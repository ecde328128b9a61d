"""The commands of `quasar-node`, a module each: `add_parser(subparsers, parents)`, `run(args, loaded)`."""
