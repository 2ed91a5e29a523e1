// Moments as times.js writes them; colors that change with Airflow's.
const dateAndMinute = formatter({ year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit" });
const minuteOfDay = formatter({ hour: "2-digit", minute: "2-digit" });
const TIME_FORMATS = { full: dateAndTime, minute: dateAndMinute, clock: minuteOfDay };

// Writes every moment below `root`: in full, or as its data-format (minute, clock) says. Days have data-day.
function showTimes(root) {
  for (const element of root.querySelectorAll("time:not([data-day])")) {
    if (element.dataset.shown === element.dateTime) continue;
    const moment = new Date(element.dateTime);
    const format = TIME_FORMATS[element.dataset.format] || dateAndTime;
    element.title = dateAndTime.format(moment).replace(",", "");
    element.textContent = format.format(moment).replace(",", "");
    element.dataset.shown = element.dateTime;
  }
}

{
  const own = document.getElementById("own-address");
  if (own) own.href = location.href;
  addEventListener("storage", (event) => {
    if (event.key !== "theme") return;
    if (event.newValue === "light" || event.newValue === "dark") document.documentElement.dataset.theme = event.newValue;
    else delete document.documentElement.dataset.theme;
  });
}
