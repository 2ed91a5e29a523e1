"""Send scans of beamline 7.0.1.2 (COSMIC) to be copied to NERSC and reconstructed.

One file, Python 3.8 or newer, nothing to install: copy it to the beamline computer and run it.

    submit_scan.py FILE... [--engine ptychocam] [--engine cdtools] [--n-gpu 4] [--param name=value]
                           [--wait] [--json] [--dry-run] [--any-name]
    submit_scan.py status [FILE|RUN|SCAN]...   how far it is; without a name: what is kept on this computer
    submit_scan.py cancel FILE|RUN|SCAN...     stop the runs that are going on, withdraw what was not sent yet
    submit_scan.py reprocess FILE|SCAN...      a new run, with the parameters of the last one and those given
    submit_scan.py stack SCAN...               one stack of its energies for each region
    submit_scan.py flush                       send what was kept while Airflow could not be reached
    submit_scan.py watch FOLDER                submit each scan when it is finished, until stopped
    submit_scan.py listen                      submit each scan when the processing program reports its end
                                               (stop or abort), until stopped; needs pyzmq

FILE is the scan's path below the beamline's collection, as in
`2023/02/230216/NS_230216033_ccdframes_0_0.cxi`; a leading `/`, or the folder named in `data_root`, may
stand before it. With no engine the scan is copied to NERSC and not reconstructed. The parameters and their
bounds: `submit_scan.py submit --help`.

SCAN is a scan as it is named at the beamline, `NS_230216033`, or with another prefix: the files of all its
energies and regions, `NS_230216033_ccdframes_<energy>_<region>.cxi`, each with a run of its own. `status
SCAN` counts them and says why some failed, `reprocess SCAN` runs again what has failed (`--all`: everything
that is not going on), `cancel SCAN` stops what is going on. Each lists every file with what became of it, and
can be repeated.

A file is one run. Its run id follows from its path, so a file that is sent twice, by whoever, runs once:
the second time is answered "already accepted" (exit code 0, whatever became of the run) and, when that run
has failed or is done, how to run it again: `reprocess`. Every request is written to the spool folder
before it is sent and leaves it when Airflow has accepted it. If Airflow cannot be reached, or this computer
stops, it is sent by the next `submit`, `flush` or `watch`, oldest first. Requests that Airflow finds wrong
are moved to `rejected/` in the spool folder, with Airflow's message, and hold up nothing.

Exit codes: 0 accepted, now or before; 2 bad input or settings, nothing was sent; 3 kept in the spool, to be
sent later; 4 refused by Airflow (credentials, role, or the request itself); 5 the run failed (`--wait`,
`status`); 6 no such run; 7 Airflow cannot be reached and nothing was kept; 8 not all is done yet (`status
SCAN`, `reprocess SCAN --all`), or `--wait-limit` is over, the runs go on; 130 interrupted, the runs go on.
With several files or scans the gravest of them counts; so `status SCAN` ends with 0 when all its files are
done, 8 while some go on and none has failed, 5 when one has failed.

Settings come from `~/.config/cosmic/client.ini` (or `--config FILE`), and before it from the environment
(COSMIC_AIRFLOW_URL, _USER, _PASSWORD_FILE, _TOKEN_FILE; COSMIC_SPOOL) and from options:

    [airflow]
    url = https://airflow.example.org
    user = beamline
    password_file = ~/.config/cosmic/password      ; or token_file; only its owner may be able to read it
    ca_file = /etc/ssl/our-ca.pem                  ; when the certificate is not publicly trusted
    allow_http = no                                ; yes: credentials may cross a network unencrypted
    [client]
    spool = ~/.local/share/cosmic/spool            ; on a local disk
    data_root = /data/7012                         ; where the collection's root is on this computer
    timeout = 30                                   ; seconds without an answer until requests are kept
    any_name = no                                  ; yes: scans need not be named NS_..._ccdframes_...
    [parameters]                                   ; of every scan, unless options say otherwise
    do_ptychocam = true
    period_illu_refine = 1
    use_illu_mask = true
    n_gpu = 4

From a Python program, with this file on its path (`sys.path.insert(0, "/opt/cosmic/submit_scan.py")`):

    from beamline_client import submit
    submit("2023/02/230216/NS_230216033_ccdframes_0_0.cxi", do_ptychocam=True)
"""

from beamline_client.submitting import submit

__all__ = ["submit"]
