"""`python -m tunesmith`: the command line, where the script is not on the path."""

from tunesmith.cli import main

if __name__ == "__main__":
    main()
