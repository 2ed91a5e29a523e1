// Times in the zone that is chosen in Airflow's header, else the viewer's.
"use strict";

function chosenZone() {
  try {
    return JSON.parse(localStorage.getItem("timezone")) || undefined;
  } catch {
    return undefined;
  }
}

function formatter(options) {
  const wanted = { hourCycle: "h23", ...options };
  try {
    return new Intl.DateTimeFormat("en-CA", { ...wanted, timeZone: chosenZone() });
  } catch {
    return new Intl.DateTimeFormat("en-CA", wanted);
  }
}

const dateAndTime = formatter({
  year: "numeric", month: "2-digit", day: "2-digit", hour: "2-digit", minute: "2-digit", second: "2-digit",
  timeZoneName: "short",
});
const timeOfDay = formatter({ hour: "2-digit", minute: "2-digit", second: "2-digit" });
