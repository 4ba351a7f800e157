import typer

app = typer.Typer(help="Make, import and check cohorts.", no_args_is_help=True)


@app.command()
def check() -> None:
    """Being built."""
