"""`python -m qinco_cli`."""

from qinco_cli.main import main

if __name__ == "__main__":
    main()
