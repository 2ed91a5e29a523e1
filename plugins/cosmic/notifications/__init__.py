"""Notifies people of what has gone wrong, in one message for all of it: the DAG `notify`.

`tasks` looks every two minutes; `news` reads from Airflow's database, in the API server, what it asks for;
`outages` asks the facilities; `book` has what each receiver was notified of; `message` composes; `receivers`
sends.
"""
