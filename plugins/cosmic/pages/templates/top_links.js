// Airflow's frame does not let a page in it lead the whole window elsewhere; a link in Airflow's own page may.
if (parent !== window) {
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.('a[target="_top"]');
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    const above = parent.document.createElement("a");
    above.href = link.href;
    above.click();
  });
}
