"""What several places must agree on: ids of DAGs, tasks and connections. Imports nothing."""

TRANSFER_AUTO_RECON = "transfer_auto_recon"
PROCESS_NEWFILE = "process_newfile_7012_ptycho4"
STACK_SCAN = "stack_scan"
FIND_MISSED_SCANS = "find_missed_scans"
WATCH_SCANS = "watch_scans"
CANCEL_ABANDONED_WORK = "cancel_abandoned_work"
NOTIFY = "notify"
FLIGHT_CHECK = "test_cosmicDTN_transfers"

CHECK_TASK = "check_scan"  # the first one of TRANSFER_AUTO_RECON
COPY_TASK = "copy_to_nersc"  # of TRANSFER_AUTO_RECON and PROCESS_NEWFILE
REPORT_TASK = "report"  # its XCom is the result of a run, in all DAGs that have it
# XCom of REPORT_TASK, how many warnings a run's results have. There is none without warnings, so that runs
# with warnings are found by the key alone.
WARNINGS_KEY = "warnings"
NO_STACK_KEY = "no_stack"  # XCom of the first task of STACK_SCAN: why a run that started by itself makes none

GLOBUS_CONN_ID = "globus_default"
SUPERFACILITY_CONN_ID = "superfacility_default"
NOTIFY_CONN_ID = "notify_default"
