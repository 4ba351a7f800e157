"""The daemon's configuration: what is out of range is told with its line, and the edges of a range are in it."""

import pytest

from hscc_edge.errors import ConfigError
from hscc_edge.serve.config_file import read_config

HEAD = 'state = "state"\n[[model]]\nbundle = "bundle"\n'


def read(tmp_path, text):
    path = tmp_path / "serve.toml"
    path.write_text(HEAD + text)
    return read_config(path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[dicom]\nport = 65536\n", "line 5: port is 65536: expected 0 to 65535"),
        ("[work]\nthreads = 0\n", "line 5: threads is 0: expected 1 to 1024"),
        ("[work]\nreaders = -1\n", "line 5: readers is -1: expected 0 to 64"),
        ('[[destination]]\nae_title = "A"\nport = 0\n', "line 6: port is 0: expected 1 to 65535"),
        ('[[folder]]\npath = "drop"\nsettle_s = -1.0\n', "line 6: settle_s is -1.0: expected 0 to 86400"),
        ('[dicom]\ncommitment_peers = ["A@b:99999"]\n', "line 5: commitment_peers names 'A@b:99999': expected AE@host"),
        ('[dicom]\ncommitment_peers = ["A@b:0"]\n', "the port from 1 to 65535"),
        ('[dicom]\ncommitment_peers = ["A"]\n', "commitment_peers names 'A'"),
    ],
)
def test_what_is_out_of_range_is_told_with_its_line(tmp_path, text, words):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_edges_of_a_range_are_in_it(tmp_path):
    found = read(
        tmp_path,
        '[dicom]\nport = 65535\ncommitment_peers = ["A@b:1", "C@d:65535"]\n'
        '[work]\nthreads = 1\nreaders = 64\n[[folder]]\npath = "drop"\nsettle_s = 0.0\n',
    )
    assert found.dicom.port == 65535 and found.work.readers == 64 and found.folder[0].settle_s == 0.0
