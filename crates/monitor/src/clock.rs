//! Wall clock as log lines and exit records want it.

use rustix::time::{ClockId, clock_gettime};

/// `2026-11-21T23:14:12.123456789Z`
pub type Stamp = [u8; 30];

/// Nanoseconds since 1970.
pub fn now() -> i64 {
    let now = clock_gettime(ClockId::Realtime);
    now.tv_sec
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec)
}

/// RFC 3339 in UTC, always with nine digits.
pub fn stamp(nanoseconds: i64) -> Stamp {
    let (seconds, nanos) = (
        nanoseconds.div_euclid(1_000_000_000),
        nanoseconds.rem_euclid(1_000_000_000),
    );
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let mut out = *b"0000-00-00T00:00:00.000000000Z";
    digits(&mut out[0..4], year);
    digits(&mut out[5..7], month);
    digits(&mut out[8..10], day);
    digits(&mut out[11..13], second / 3600);
    digits(&mut out[14..16], second / 60 % 60);
    digits(&mut out[17..19], second % 60);
    digits(&mut out[20..29], nanos);
    out
}

fn digits(out: &mut [u8], mut value: i64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (value % 10).unsigned_abs() as u8;
        value /= 10;
    }
}

/// Days since 1970 to a date. Years are counted from the first of March, so that the leap day is a year's last and the
/// months' lengths follow a straight line: 153 days in five months.
fn civil(days: i64) -> (i64, i64, i64) {
    const DAYS_TO_1970: i64 = 719_468; // from 0000-03-01
    const DAYS_OF_400_YEARS: i64 = 146_097;
    let days = days + DAYS_TO_1970;
    let era = days.div_euclid(DAYS_OF_400_YEARS);
    let day_of_era = days.rem_euclid(DAYS_OF_400_YEARS);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(nanoseconds: i64) -> String {
        String::from_utf8(stamp(nanoseconds).to_vec()).unwrap()
    }

    #[test]
    fn known_moments() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_827_696_000_000_001), "2000-02-29T12:34:56.000000001Z");
        assert_eq!(text(1_795_302_852_123_456_789), "2026-11-21T23:14:12.123456789Z");
        assert_eq!(text(4_107_542_399_999_999_999), "2100-02-28T23:59:59.999999999Z");
        assert_eq!(text(4_107_542_400_000_000_000), "2100-03-01T00:00:00.000000000Z");
        assert_eq!(text(-1), "1969-12-31T23:59:59.999999999Z");
    }

    #[test]
    fn every_day_follows_the_one_before() {
        let (mut year, mut month, mut day) = civil(-1);
        assert_eq!((year, month, day), (1969, 12, 31));
        for days in 0..200_000 {
            let next = civil(days);
            let same_month = next == (year, month, day + 1);
            let next_month = next == (year, month + 1, 1) && day >= 28;
            let next_year = next == (year + 1, 1, 1) && (month, day) == (12, 31);
            assert!(same_month || next_month || next_year, "{next:?}");
            (year, month, day) = next;
        }
    }
}
