"""``python -m scalepet``, and what ``deepspeed --module scalepet`` starts on every rank."""

from scalepet.cli import main

if __name__ == "__main__":
    main()
