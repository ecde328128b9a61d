"""The commands of `quasar-node`, one module each: `add_parser(subparsers, parents)` and `run(args, loaded)`."""
