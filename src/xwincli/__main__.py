"""Run the command line as ``python -m xwincli`` (also what torchrun and deepspeed start)."""

from xwincli.cli import main

if __name__ == "__main__":
    main()
