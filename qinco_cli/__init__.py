"""The `qinco` command line: parse, call `qinco_core`, render. One file a command."""
